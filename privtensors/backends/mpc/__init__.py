"""Two-party secret sharing with an offline dealer."""
