"""Edit videos with BIVDiff (no training): an image model makes the frames, a video model smooths them."""
