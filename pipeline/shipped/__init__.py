"""Hold what exists for the demo only: synthetic videos, a detector of their motions, small trained weights, and how they were made."""
