"""Noise from a cryptographic generator: fast and hardened for training, exact on a grid for releases."""
