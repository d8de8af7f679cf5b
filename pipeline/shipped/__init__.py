"""Serve the demo only: synthetic videos, a detector of their motions, small trained weights and their trainings."""
