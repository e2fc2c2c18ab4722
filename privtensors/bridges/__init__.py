"""Bridges: one module per pair of backends that converts, found by the entry-point group ``privtensors.bridges``."""
