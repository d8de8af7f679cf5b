"""Every model that BIVDiff's tasks take, once for all tests of a process."""

import pytest
from helpers.tiny_bivdiff import Folders, save_folders, settings_of

from pipeline.settings.bivdiff import BivdiffSettings


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return save_folders(tmp_path_factory.mktemp("bivdiff"))


@pytest.fixture(scope="session")
def float32(folders: Folders) -> BivdiffSettings:
    """Settings by which the tiny models are loaded."""
    return settings_of(folders, folders.inputs, "controlnet", "none.csv").bivdiff
