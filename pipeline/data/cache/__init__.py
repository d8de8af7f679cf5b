"""Make and read the latent cache: encode frames, write shards, commit them by manifest, inspect, verify and repair them."""
