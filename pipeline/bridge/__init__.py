"""Bridge mathematics, in plain PyTorch: schedule, alignment (SAF), targets, loss, samplers.

Nothing here knows a network, a device, a setting or a file: the network comes as a closure `denoise(z, t)`,
randomness as tensors. Latents are (B, F, C, h, w), frames before channels.
"""
