"""What ``python -m tests.bench dp`` runs: the settings, the contenders in processes of their own, tables and targets."""
