"""Write export folders, from a finished run or from a checkpoint, with a model card."""
