"""How computing parties exchange messages, and what is counted. In process now; sockets implement the same interface."""
