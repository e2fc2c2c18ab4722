"""One party's place in a session: its backend over its connections, and what a request does to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.correlations import PartyCorrelations, Stream
from privtensors.core.recorder import Disclosure
from privtensors.core.session import Session
from privtensors.deploy.config import Deployment, ServiceLimits, ServiceRole
from privtensors.deploy.terms import mended
from privtensors.errors import PolicyError, VersionMismatch
from privtensors.hf.wrap import computing_technique
from privtensors.policy import Policy, Technique
from privtensors.transport.limits import Limits
from privtensors.transport.peer import Peer
from privtensors.transport.tcp import TcpChannel, connect
from privtensors.transport.tls import Identity

LOG: Final = logging.getLogger("privtensors")
SETUP: Final = b"privtensors set-up"


class NotTheReceiver:
    """Recorder of a party that results are not revealed to: what it gets is a placeholder, so there is nothing to record."""

    def record(self, disclosure: Disclosure) -> None:
        """Nothing: the receiver's own ledger has the row."""


def deployed_technique(policy: Policy) -> Technique:
    """The technique that parties on the network compute.

    Raises:
        PolicyError: The policy computes by another technique than additive shares.
    """
    technique = computing_technique(policy)
    if technique.backend != MPCBackend.name:
        what = f"technique {technique.name!r} does not run on parties of its own"
        raise PolicyError(what, where="deployment", fix='[[infer]] technique = "mpc"')
    return technique


def transport_limits(limits: ServiceLimits) -> Limits:
    """What connections of a deployment tolerate."""
    return Limits(payload=limits.payload_mib << 20, idle_s=limits.idle_s)


def reach(deployment: Deployment, role: ServiceRole, identity: Identity, terms: Mapping[str, str], timeout: float) -> Peer:
    """Connect to a service of the deployment; raises as :func:`~privtensors.transport.tcp.connect`, a mismatch with what to do."""
    limits = transport_limits(deployment.limits)
    try:
        return connect(deployment.address(role), identity, role, terms=terms, limits=limits, timeout=timeout)
    except VersionMismatch as error:
        raise mended(error) from None


class Room:
    """A computing party in one session.

    Args:
        technique: Computes.
        session: Whose meter counts and whose device computes; its backend becomes this party's.
        channel: This party's end of the connection to the other computing party.
        seeds: The owners' input seeds, the client's and the server's.
    """

    def __init__(self, technique: Technique, session: Session, channel: TcpChannel, seeds: tuple[bytes, bytes]) -> None:
        (party,) = channel.parties
        self.channel = channel
        self.correlations = PartyCorrelations(session.meter, party, seeds, session.device)
        backend = MPCBackend(technique, session.meter, channel=channel, dealer=self.correlations, device=session.device)
        session.use(technique, backend)

    def __repr__(self) -> str:
        return f"Room(party={self.channel.parties[0]})"

    @contextmanager
    def dealt(self, seed: bytes, stream: Stream | None) -> Iterator[None]:
        """Compute on fresh correlations.

        Raises:
            CorrelationError: The dealer dealt for another program.
        """
        self.correlations.begin(seed, stream)
        try:
            yield
        except BaseException:
            self.correlations.abandon()
            raise
        self.correlations.end()


def kept_tokens(cache: Any) -> int:
    """Tokens in a transformers cache."""
    return int(cache.get_seq_length())
