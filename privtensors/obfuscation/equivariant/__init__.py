"""Exact equivariant transforms of stock Hugging Face models. Guarantee class: heuristic.

A reader of traffic or logs without the weights learns keyed ids. A server that holds the transformed weights of an open model recovers
the key (100 % of the tokens).
"""

from privtensors.obfuscation.equivariant.convert import basis_of, maps_of, transform
from privtensors.obfuscation.equivariant.families import known_families
from privtensors.obfuscation.equivariant.names import Transformation, names
from privtensors.obfuscation.equivariant.patches import PatchKey
from privtensors.obfuscation.equivariant.rotate import rekey
from privtensors.obfuscation.equivariant.spaces import hidden_map, pooler_map
from privtensors.obfuscation.equivariant.transforms import BlockMap

__all__ = [
    "BlockMap",
    "PatchKey",
    "Transformation",
    "basis_of",
    "hidden_map",
    "known_families",
    "maps_of",
    "names",
    "pooler_map",
    "rekey",
    "transform",
]
