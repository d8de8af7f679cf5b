"""Find and export checkpoints. tests/sampling/test_while_training.py compares with training's own export."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_cache import tiny_settings, write_cache

from pipeline.errors import UserError
from pipeline.train.export.from_checkpoint import choose_checkpoint, export_of_checkpoint, find_checkpoints
from pipeline.train.spec import train_spec


def test_a_checkpoint_that_is_still_written_is_not_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "one"
    folder.mkdir(parents=True)
    assert find_checkpoints(str(tmp_path)) == []
    for rank in range(2):
        (folder / f"state-{rank:05d}-of-00002.safetensors").write_bytes(np.zeros(3).tobytes())
        (folder / f"state-{rank:05d}-of-00002.json").write_text('{"step": 7}')
        found = find_checkpoints(str(tmp_path))
        assert len(found) == rank
    assert found[0].step == 7 and len(found[0].files) == 4


def test_a_missing_and_a_damaged_checkpoint_are_refused(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    spec = train_spec("finetune", settings, write_cache(settings).spec)
    with pytest.raises(UserError, match="finetune/checkpoints: no checkpoint there"):
        choose_checkpoint(spec.folder, None)
    folder = Path(spec.folder, "checkpoints", "one")
    folder.mkdir(parents=True)
    (folder / "state-00000-of-00001.safetensors").write_bytes(b"half")
    (folder / "state-00000-of-00001.json").write_text('{"step": 7, "updates": 7, "crc32": "0"}')
    with pytest.raises(UserError, match=r"one: state-00000-of-00001: checksum differs; set sample.checkpoint"):
        export_of_checkpoint(spec, choose_checkpoint(spec.folder, None))
    assert not list(Path(spec.folder).glob("export*"))
