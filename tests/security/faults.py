"""Faults of a deployment, one at a time: what each party that is left reports, and after how long."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tests.security import proxy
from tests.security.processes import Client, Parties, Process, Role, ended
from tests.security.proxy import Direction, Event, Trap

Act = Literal["kill", "stop", "cut", "pull", "flip", "replay", "swap"]
Stage = Literal["connect", "ask"]
WIRE: Final[dict[str, Trap]] = {"cut": proxy.cut, "pull": proxy.pull, "flip": proxy.flip, "replay": proxy.replay, "swap": proxy.swap}
PATIENCE_S: Final = 2.0  # beside the silence that the policy file allows: the rest of ten seconds
LAST: Final = 1.0
RESTS: Final = ("at the end of the set-up", "at the reveal")  # a client that is silent from there on is one without a request


@dataclass(frozen=True)
class Fault:
    """One fault at one point.

    Attributes:
        act: What happens.
        victim: To whom; for what happens on the wire, the link.
        stage: While the client connects, or asks.
        link: Whose bytes tell the point.
        direction: Which of them.
        at: Share of those that a stage without fault sends; ``LAST`` is within the last record.
        point: The point in words.
    """

    act: Act
    victim: str
    stage: Stage
    link: str
    direction: Direction
    at: float
    point: str

    def __str__(self) -> str:
        return f"{self.victim}: {self.act} {self.point}"


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        reports: Party to what it reports, empty for "served as if nothing had been".
        seconds: Party to seconds from the fault to the report.
        answered: Whether the client got an answer in spite of it.
        rows: Rows that the client's ledger got.
        recovered: Whether the next honest request was answered rightly.
    """

    fault: Fault
    reports: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    answered: bool = False
    rows: int = 0
    recovered: bool = False

    @property
    def slowest(self) -> float:
        """Seconds of the slowest party."""
        return max(self.seconds.values(), default=0.0)


POINTS: Final[tuple[tuple[Stage, str, Direction, float, str], ...]] = (
    ("connect", "client-server", "up", 0.0, "before a byte of it was sent"),
    ("connect", "client-server", "up", 0.005, "in the client's handshake with the server"),
    ("connect", "client-dealer", "up", 0.5, "in the client's handshake with the dealer"),
    ("connect", "server-dealer", "up", 0.5, "in the server's handshake with the dealer"),
    ("connect", "server-dealer", "down", 0.95, "when the dealer gets ready"),
    ("connect", "client-server", "down", 0.5, "in the set-up"),
    ("connect", "client-server", "up", LAST, RESTS[0]),
    ("ask", "client-server", "up", 0.0, "at the announcement"),
    ("ask", "client-dealer", "down", 0.0, "before the seeds"),
    ("ask", "server-dealer", "down", 0.0, "before corrections"),
    ("ask", "server-dealer", "down", 0.5, "within corrections"),
    ("ask", "server-dealer", "down", LAST, "after corrections"),
    ("ask", "client-server", "down", 0.3, "in the first layer"),
    ("ask", "client-server", "up", 0.7, "in the second layer"),
    ("ask", "client-server", "down", LAST, RESTS[1]),
)


def all_faults() -> list[Fault]:
    """Every process killed and stalled at every point, and every change on every wire."""
    found = []
    for stage, link, direction, at, point in POINTS:
        for victim in ("client", "server", "dealer"):
            acts: tuple[Act, ...] = ("kill", "stop")
            found += [Fault(act, victim, stage, link, direction, at, point) for act in acts]
        changes: tuple[Act, ...] = ("cut", "pull", "flip", "replay", "swap")
        found += [Fault(act, link, stage, link, direction, at, point) for act in changes]
    return found


class Trial:
    """Runs faults on one deployment.

    Args:
        parties: The deployment.
        idle_s: Its silence limit: every party must report within it and ``PATIENCE_S``.
    """

    def __init__(self, parties: Parties, idle_s: float) -> None:
        self.parties, self.idle_s = parties, idle_s
        self._client, self._spare = parties.client(), parties.client()
        self._seed = 0
        self._sizes: dict[Stage, dict[tuple[str, Direction], int]] = {}
        self._measure()

    def _ask(self) -> dict[str, Any]:
        self._seed += 1
        return {"do": "ask", "seed": self._seed}

    def _measure(self) -> None:
        for stage in ("connect", "ask", "connect", "ask"):  # once more: the first of its kind may take more
            before = {name: dict(link.passed) for name, link in self.parties.links.items()}
            if stage == "connect":
                self._client.do(do="close")
                time.sleep(0.2)
                before = {name: dict(link.passed) for name, link in self.parties.links.items()}
            reply = self._client.do(**({"do": "connect"} if stage == "connect" else self._ask()))
            assert reply["error"] is None, reply
            time.sleep(0.2)
            self._sizes[stage] = {
                (name, way): link.passed[way] - before[name][way] for name, link in self.parties.links.items() for way in ("up", "down")
            }

    def run(self, fault: Fault) -> Outcome:
        """Make the fault, gather what the parties report, restore, and ask once more."""
        outcome = Outcome(fault)
        self._prepare(fault.stage)
        logs = {role: (service, len(service.log.read_text())) for role, service in self.parties.services.items()}
        fired: list[float] = []
        self._arm(fault, fired)
        self._client.tell(**({"do": "connect", "timeout": self.idle_s} if fault.stage == "connect" else self._ask()))
        limit = self.idle_s + PATIENCE_S + 5
        if fault.victim == "client" and fault.act in ("kill", "stop"):
            self._wait(fired)
        else:
            self._client_reports(outcome, fired, limit)
        for role, (service, start) in logs.items():
            if fault.victim == role and fault.act in ("kill", "stop"):
                continue
            if outcome.answered or (fault.victim == "client" and fault.act == "stop" and fault.point in RESTS):
                continue
            self._service_reports(outcome, role, service, start, fired, limit)
        self._restore(fault)
        again = self._client.do(**self._ask())
        if again["error"] is not None:  # the first of a session that was lost while nobody asked
            outcome.reports["retry"] = again["error"]
            again = self._client.do(**self._ask())
        outcome.recovered = again["error"] is None and again["wrong"] < 0.05
        return outcome

    def _prepare(self, stage: Stage) -> None:
        told = {"do": "close"} if stage == "connect" else self._ask()
        reply = self._client.do(**told)
        assert reply["error"] is None, reply
        time.sleep(0.1)  # the services write their last line

    def _arm(self, fault: Fault, fired: list[float]) -> None:
        total = self._sizes[fault.stage][fault.link, fault.direction]
        after = total - 20 if fault.at == LAST else int(total * fault.at)  # signatures differ by some bytes
        act: Callable[[Event], list[bytes]]
        if fault.act in WIRE:
            act = WIRE[fault.act]
        else:
            number = signal.SIGKILL if fault.act == "kill" else signal.SIGSTOP
            caller, called = fault.link.split("-")
            sender = caller if fault.direction == "up" else called
            victim: Process = self._client if fault.victim == "client" else self.parties.services[_role(fault.victim)]

            def act(event: Event) -> list[bytes]:
                victim.signal(number)
                whole = fault.act == "stop" or fault.victim != sender
                return [event.record, *event.following] if whole else [event.record[: event.at]]

        def trap(event: Event) -> list[bytes]:
            fired.append(time.time())
            return act(event)

        self.parties.links[fault.link].arm(fault.direction, after, trap)

    def _wait(self, fired: list[float]) -> None:
        deadline = time.monotonic() + 20
        while not fired:
            assert time.monotonic() < deadline, "the point was never reached"
            time.sleep(0.01)

    def _client_reports(self, outcome: Outcome, fired: list[float], limit: float) -> None:
        reply = self._client.reply(20 + limit)
        outcome.rows = reply["rows"]
        outcome.answered = reply["error"] is None
        outcome.reports["client"] = reply["error"] or "answered"
        assert fired, "the point was never reached"
        outcome.seconds["client"] = max(0.0, reply["end"] - fired[0])
        if outcome.answered and outcome.fault.stage == "ask":
            assert reply["wrong"] < 0.05, "a wrong answer"
        if not outcome.answered:
            assert "\n" not in reply["text"]

    def _service_reports(self, outcome: Outcome, role: str, service: Process, start: int, fired: list[float], limit: float) -> None:
        if outcome.fault.stage == "connect" and not _involved(role, outcome.fault):
            return
        found = ended(service.log, start, max(0.0, fired[0] + limit - time.time()))
        if found is None:
            outcome.reports[role] = "nothing"
            outcome.seconds[role] = limit
            return
        line, when = found
        outcome.reports[role] = line.split("ended: ")[-1].split(":")[0] if "ended" in line else line.split("INFO ")[-1][:40]
        if "turned away" in line:
            outcome.reports[role] = "turned away"
        outcome.seconds[role] = max(0.0, when - fired[0])

    def _restore(self, fault: Fault) -> None:
        for link in self.parties.links.values():
            link.disarm()
        if fault.act == "pull":
            self.parties.links[fault.link].cut()
        if fault.act not in ("kill", "stop"):
            return
        if fault.victim == "client":
            self._client.kill()
            self._client, self._spare = self._spare, self.parties.client()
        elif fault.act == "kill":
            self.parties.replace(_role(fault.victim))
        else:
            self.parties.services[_role(fault.victim)].signal(signal.SIGCONT)

    @property
    def client(self) -> Client:
        """The client in use."""
        return self._client


def _role(name: str) -> Role:
    return "server" if name == "server" else "dealer"


def _involved(role: str, fault: Fault) -> bool:
    """Whether a service has seen anything of a session that fails while it is opened: then it must report."""
    order = [p[4] for p in POINTS]
    place = order.index(fault.point)
    return place >= (3 if role == "server" else 5)


def in_time(outcome: Outcome, idle_s: float) -> bool:
    """Whether every party reported within what it may take."""
    return outcome.slowest <= idle_s + PATIENCE_S and "nothing" not in outcome.reports.values()
