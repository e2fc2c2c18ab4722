"""What ``MPC`` does in a policy's ``train`` stage: who shares what, and what stays shared. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from privtensors.policy.assets import Asset, Party
from privtensors.policy.facts import Local, Shared
from privtensors.policy.forms import Plaintext, SizesAndTiming
from privtensors.policy.phases import Phase
from privtensors.policy.state import Give, Has, Sees, Transition

# Data of two owners: each party's own part is an asset of its own, or "the owner sees it in plain" would cover both.
SERVER_EXAMPLES: Final = "the server's training examples"
SERVER_LABELS: Final = "the server's labels"
TRAINED: Final = "trained weights"

_COMPUTED: Final = (Asset.ACTIVATIONS, Asset.GRADIENTS, TRAINED, Asset.METRICS)
_TLS: Final = "the links run TLS 1.3"
_PLAN: Final = "the training plan is public: shapes, batch sizes, number of steps, optimizer and learning rate"
_OFFLINE: Final = "the dealer learns how much correlated randomness a step needs, hence its shapes"
_LOCAL: Final = "only a value that its owner holds in plain can be shared"


def owners() -> Mapping[str, frozenset[str]]:
    """Who holds what when training starts. Nobody holds gradients, losses or trained weights."""
    client, server = frozenset({str(Party.CLIENT)}), frozenset({str(Party.SERVER)})
    return {
        Asset.EXAMPLES: client,
        Asset.LABELS: client,
        SERVER_EXAMPLES: server,
        SERVER_LABELS: server,
        Asset.WEIGHTS: server,
        Asset.METRICS: frozenset(),
        Asset.SHAPES: client,
    }


def transitions(scheme: str, shared: Callable[[str, str], tuple[Give, ...]]) -> tuple[Transition, ...]:
    """Sharing at both owners, then training on shares. Nothing is opened: a reveal is the user's own act.

    Args:
        scheme: Name of the sharing.
        shared: What it gives to share an asset (first argument) that a party (second) holds.
    """
    owned = (
        ("share the client's examples", Asset.EXAMPLES, Party.CLIENT),
        ("share the client's labels", Asset.LABELS, Party.CLIENT),
        ("share the server's examples", SERVER_EXAMPLES, Party.SERVER),
        ("share the server's labels", SERVER_LABELS, Party.SERVER),
        ("share the starting weights", Asset.WEIGHTS, Party.SERVER),
    )
    plan = (
        Sees(Asset.SHAPES, Party.SERVER, Plaintext(), _PLAN),
        Sees(Asset.SHAPES, Party.DEALER, SizesAndTiming(), _OFFLINE),
        Sees(Asset.SHAPES, Party.NETWORK, SizesAndTiming(), _TLS),
    )
    computed: tuple[Give, ...] = tuple(give for asset in _COMPUTED for give in shared(asset, ""))
    return (
        Transition("agree on the plan", Phase.SHARE, gives=plan),
        *(
            Transition(
                name, Phase.SHARE, (Has(Local, asset, (("party", party),)),), shared(asset, party), _LOCAL, f"Let the {party} hold {asset}"
            )
            for name, asset, party in owned
        ),
        Transition(
            "train on shares",
            Phase.COMPUTE,
            tuple(Has(Shared, asset, (("scheme", scheme),)) for _, asset, _ in owned),
            computed,
            "both operands of a protocol must be shared",
        ),
    )


def hidden_from(parties: frozenset[str]) -> Mapping[str, frozenset[str]]:
    """By asset, the parties that never hold it in plain."""
    held = {Asset.EXAMPLES: Party.CLIENT, Asset.LABELS: Party.CLIENT, SERVER_EXAMPLES: Party.SERVER, SERVER_LABELS: Party.SERVER}
    return {
        **{asset: parties - {party} for asset, party in held.items()},
        Asset.WEIGHTS: parties - {Party.SERVER},
        **{asset: parties for asset in _COMPUTED},
    }


def breaks_under() -> Mapping[frozenset[str], frozenset[str]]:
    """What collusions learn beyond what each member holds."""
    client, server = {Asset.EXAMPLES, Asset.LABELS}, {SERVER_EXAMPLES, SERVER_LABELS, Asset.WEIGHTS}
    computed = frozenset(map(str, _COMPUTED))
    return {
        frozenset({Party.CLIENT, Party.SERVER}): computed,
        frozenset({Party.CLIENT, Party.DEALER}): computed | {str(a) for a in server},
        frozenset({Party.SERVER, Party.DEALER}): computed | {str(a) for a in client},
    }


REMARKS: Final = (
    "Examples and labels may come from both parties, joined by rows or by columns; each is shared by its owner",
    "Gradients, optimizer state, losses and trained weights stay shared: no step opens any of them",
    "Trained weights and losses reach a party only through privtensors.reveal(x, to=...), one ledger row each",
    "Whoever receives trained weights, or a loss, learns what they say about the training data: nothing here adds noise",
    "Both parties see shapes, batch composition, number of steps, optimizer and learning rate; the dealer sees shapes",
)
