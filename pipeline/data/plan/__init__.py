"""Plan the clips: list a source's videos, read its tables, place windows, split training from held-out."""
