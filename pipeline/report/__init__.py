"""Draw the page that a run ends with: its videos, curves and figures."""
