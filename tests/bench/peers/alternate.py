"""The order of the runs: all contenders in turn, round after round, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Protocol, TypeVar

from tests.bench.peers.contender import NETWORKS, Contender, Request, Summary, over_link, summarize
from tests.bench.peers.environment import NotMeasured

Asked = TypeVar("Asked")
AskedOf = TypeVar("AskedOf", contravariant=True)
Answer = TypeVar("Answer")
AnswerTo = TypeVar("AnswerTo", covariant=True)
Progress = Callable[[str, int, int], None]


class Player(Protocol[AskedOf, AnswerTo]):
    """What takes turns: :meth:`run` raises NotMeasured where it fails."""

    @property
    def name(self) -> str: ...

    def run(self, request: AskedOf, /) -> AnswerTo: ...

    def close(self) -> None: ...


def takes_part(turn: int, runs: int, turns: int) -> bool:
    """Whether a contender of ``runs`` counted runs runs in counted turn ``turn`` of ``turns``; its runs are spread evenly."""
    return (turn + 1) * runs // turns > turn * runs // turns


def take_turns(
    players: Sequence[Player[Asked, Answer]],
    requests: Sequence[Asked],
    runs: Mapping[str, int],
    failed: MutableMapping[str, str],
    progress: Progress,
    warm_ups: int = 1,
) -> dict[str, list[Answer]]:
    """The counted answers of each player by name, in order.

    Warm-ups (the first requests, not counted), then turns in alternation, each on the next request. A player that fails is closed,
    and its reason put into ``failed``.

    Args:
        players: Set up already.
        requests: One per turn, from the first again after the last.
        runs: Counted runs by name.
        failed: Who takes no part; grows.
        progress: Called with (name, turn, turns) before each run; turns below 0 are warm-ups.
        warm_ups: How many.
    """
    answers: dict[str, list[Answer]] = {player.name: [] for player in players}
    turns = max(runs.values(), default=0)
    for turn in range(-warm_ups, turns):
        request = requests[(turn + warm_ups) % len(requests)]
        for player in players:
            if player.name in failed or (turn >= 0 and not takes_part(turn, runs[player.name], turns)):
                continue
            progress(player.name, turn, turns)
            try:
                answer = player.run(request)
            except NotMeasured as error:
                failed[player.name] = str(error)
                player.close()
                continue
            if turn >= 0:
                answers[player.name].append(answer)
    return answers


class Tournament:
    """Runs contenders against each other.

    Args:
        contenders: Set up already.
        progress: Called with (contender, turn, turns) before each run; turn -1 is the warm-up.

    Attributes:
        failed: Why a contender dropped out, by its name.
    """

    def __init__(self, contenders: Sequence[Contender], progress: Progress) -> None:
        self.contenders = list(contenders)
        self.failed: dict[str, str] = {}
        self._progress = progress

    def play(self, requests: Sequence[Request], network: str, most: int) -> list[Summary]:
        """One block, of at most ``most`` counted runs each.

        A warm-up (request 0, not counted), then turns in alternation, each on the next request.

        A contender that cannot be shaped gives no row for a network but ``loopback``: see :func:`fill`.
        """
        tokens = requests[0].tokens
        taking = [c for c in self.contenders if c.name not in self.failed and (c.shapes or NETWORKS[network] is None)]
        runs = {c.name: min(c.runs, most) for c in taking}
        samples = take_turns(taking, requests, runs, self.failed, self._progress)
        return [
            Summary(c.name, c.role, tokens, network, reason=self.failed[c.name])
            if c.name in self.failed
            else summarize(c.name, c.role, tokens, network, samples[c.name])
            for c in self.contenders
            if c.name in samples or c.name in self.failed
        ]


def fill(rows: Sequence[Summary], contenders: Sequence[Contender], network: str) -> list[Summary]:
    """The computed rows of ``network`` for contenders that cannot be shaped, from their ``loopback`` rows."""
    link = NETWORKS[network]
    unshaped = {c.name for c in contenders if not c.shapes}
    done = {(row.name, row.tokens) for row in rows if row.network == network}
    if link is None:
        return []
    return [
        over_link(row, network, link)
        for row in rows
        if row.network == "loopback" and row.name in unshaped and (row.name, row.tokens) not in done
    ]
