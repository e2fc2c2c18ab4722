"""Keyed obfuscation of models: equivariant transforms and passkey vocabularies.

Guarantee class: heuristic. It stops a reader of traffic or logs who lacks the weights. It does not stop a server that holds the
transformed weights of an open model: that server recovers the key (100 % of the tokens, see ``privtensors audit obfuscation``).
"""
