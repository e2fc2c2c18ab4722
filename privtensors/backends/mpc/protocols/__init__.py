"""Protocols over shares, each a generator of rounds. Kernels are built from them."""
