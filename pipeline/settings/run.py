"""Section `run`: the name of a run, where its results go, and its seed."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from .section import Section


class RunSettings(Section):
    """Name, place and seed of a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    storage: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)]
    track: list[Literal["wandb", "mlflow"]]

    @property
    def folder(self) -> str:
        """STORAGE/NAME, with ~ expanded."""
        storage = self.storage
        if storage.startswith("~"):
            storage = str(Path(storage).expanduser())
        return f"{storage.rstrip('/')}/{self.name}"
