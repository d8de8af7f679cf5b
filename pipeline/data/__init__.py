"""Turn videos into training batches: plan the clips, decode them, cache their latents, load the cache."""
