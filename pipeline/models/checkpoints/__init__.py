"""Convert published checkpoints to our networks, and save and load our exports."""
