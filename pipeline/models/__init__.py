"""Define the networks, and build them from settings or from an export. Plain PyTorch."""
