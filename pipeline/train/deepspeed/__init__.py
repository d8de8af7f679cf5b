"""Wrap DeepSpeed: make an engine from settings, and read and write its weights and optimizer state whole."""
