"""Checkpoints and other files of weights: read safely, told of, started from."""
