"""What ``python -m tests.bench mpc`` measures: us and our peers, each in processes of its own, spoken to over pipes."""
