"""Load training batches from a cache, in an order that depends on seed, epoch and cache alone."""
