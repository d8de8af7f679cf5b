"""Make and read the latent cache: encode frames, write and commit shards, inspect, verify and repair them."""
