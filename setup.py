"""Build the wheel: the folder pipeline/ as the package `framebridge`, with ray_config.yaml and jobs/recipes inside.

A development install (`pip install -e .`) keeps the folders' own names, which jobs and tests import.
"""

import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DATA = {"shipped": ["*.json", "*.md", "weights/*/*"], "report": ["*.html"]}
EDITABLE = "editable_wheel" in sys.argv
NAME = "pipeline" if EDITABLE else "framebridge"


class BuildWithDefaults(build_py):
    """Copy into a wheel what a checkout has beside the package."""

    def run(self) -> None:
        """Build, with recipes and defaults inside."""
        super().run()
        if not EDITABLE:
            inside = Path(self.build_lib) / NAME
            shutil.copy(HERE / "ray_config.yaml", inside)
            shutil.copytree(HERE / "jobs" / "recipes", inside / "jobs" / "recipes", dirs_exist_ok=True)


setup(
    packages=[NAME, *(f"{NAME}.{name}" for name in find_packages(str(HERE / "pipeline")))]
    + (find_packages(str(HERE), include=["experiments*"]) if EDITABLE else []),
    package_dir={} if EDITABLE else {NAME: "pipeline"},
    package_data={f"{NAME}.{room}": patterns for room, patterns in DATA.items()},
    cmdclass={"build_py": BuildWithDefaults},
)
