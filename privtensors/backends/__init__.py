"""Backends: each holds protected values in its own way. They never import each other."""
