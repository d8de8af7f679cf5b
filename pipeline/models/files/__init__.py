"""Find and read the weights files of VAEs and text encoders: shipped, in a local folder, or on the hub."""
