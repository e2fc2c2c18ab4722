"""Benchmarks: ``python -m tests.bench NAME …`` runs ``tests/bench/NAME.py``, which has ``main(argv)`` and ``--help``."""
