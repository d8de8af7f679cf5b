"""An earlier place of what is now in pipeline/settings/bivdiff.py."""

from .settings.bivdiff import CONTROLLED, INPUT_CHANNELS, JOINT, PAPER_ALPHA, BivdiffSettings, Framework, Task

__all__ = ["CONTROLLED", "INPUT_CHANNELS", "JOINT", "PAPER_ALPHA", "BivdiffSettings", "Framework", "Task"]
