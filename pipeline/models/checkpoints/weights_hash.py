"""The hash that tells one model's weights from another's."""

import hashlib

from ...storage.files import list_files, resolve
from .exports import is_export


def weights_hash(path: str) -> str:
    """BLAKE2b of an export's weights, of a weights file, or of all safetensors in a folder of diffusers."""
    digest = hashlib.blake2b(digest_size=8)
    folder = next((one for one in (path, f"{path}/transformer") if is_export(one)), None)
    for file in list_files(folder, ".safetensors") if folder else [path]:
        filesystem, inner = resolve(file)
        with filesystem.open_input_stream(inner) as stream:
            while chunk := stream.read(8 << 20):
                digest.update(chunk)
    return digest.hexdigest()
