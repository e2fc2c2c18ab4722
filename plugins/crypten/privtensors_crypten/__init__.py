"""CrypTen 0.4.1 as a backend of privtensors. Two party processes, each with a share, on this host; see ``README.md``."""
