"""What can be seen (assets), who can see it (parties), and who holds what when a stage starts.

Assets and parties are strings, so that a plugin may add its own; these enumerations are the framework's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from privtensors.policy.phases import Stage


class Asset(StrEnum):
    """A kind of value that a policy accounts for."""

    EXAMPLES = "training examples"
    LABELS = "labels"
    GRADIENTS = "per-example gradients"
    UPDATES = "client updates"
    AGGREGATE = "aggregate of updates"
    TOKEN_IDS = "token ids"
    INPUTS = "inputs"  # pixels, table rows, or the looked-up embedding rows
    EMBEDDINGS = "embedding tables"
    WEIGHTS = "model weights"
    ACTIVATIONS = "activations"
    OUTPUTS = "outputs"
    MASK = "attention mask"
    SHAPES = "shapes and timing"
    METRICS = "metrics"
    KEYS = "keys"


class Party(StrEnum):
    """A process or person with a view of its own."""

    CLIENT = "client"
    SERVER = "server"
    DEALER = "dealer"
    AGGREGATOR = "aggregator"
    NETWORK = "network"  # whoever reads the links between the others


class Outputs(StrEnum):
    """How much of the task outputs is revealed to the receiver."""

    FULL = "full"  # every task output: logits, last hidden state, …
    ARGMAX = "argmax"  # of each row of logits the index of the largest, and nothing else


@dataclass(frozen=True)
class Implication:
    """Whoever sees ``known`` in plain also knows ``learned``."""

    known: str
    learned: str
    why: str


IMPLICATIONS: tuple[Implication, ...] = (
    Implication(Asset.INPUTS, Asset.TOKEN_IDS, "an embedding row identifies its token for whoever knows the table"),
)


def default_owners(stage: Stage) -> tuple[tuple[str, str], ...]:
    """(asset, party) pairs that hold when ``stage`` starts, unless a technique of the policy places the asset itself."""
    if stage is Stage.INFER:
        client: tuple[Asset, ...] = (Asset.TOKEN_IDS, Asset.INPUTS, Asset.MASK, Asset.SHAPES)
        server: tuple[Asset, ...] = (Asset.WEIGHTS, Asset.EMBEDDINGS)
    else:  # the data owner trains, or releases, what it holds
        client = (Asset.EXAMPLES, Asset.LABELS, Asset.WEIGHTS, Asset.METRICS)
        server = ()
    return tuple((str(a), str(Party.CLIENT)) for a in client) + tuple((str(a), str(Party.SERVER)) for a in server)


def asset_order(asset: str) -> tuple[int, str]:
    """Sort key: the vocabulary's order first, then plugins' assets by name."""
    known = [str(a) for a in Asset]
    return (known.index(asset) if asset in known else len(known), asset)


def party_order(party: str) -> tuple[int, str]:
    """Sort key: the vocabulary's order first, plugins' parties by name, the network last."""
    known = [str(p) for p in Party if p is not Party.NETWORK]
    rank = len(known) + 1 if party == Party.NETWORK else known.index(party) if party in known else len(known)
    return (rank, party)
