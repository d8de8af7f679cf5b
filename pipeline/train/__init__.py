"""Train the neural prior and the video model: plan a run, start workers, make steps, checkpoint, resume, export."""
