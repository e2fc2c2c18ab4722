"""The order of the runs: all contenders in turn, round after round, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.peers.contender import NETWORKS, Contender, Request, Sample, Summary, over_link, summarize
from tests.bench.peers.environment import NotMeasured


def takes_part(turn: int, runs: int, turns: int) -> bool:
    """Whether a contender of ``runs`` counted runs runs in counted turn ``turn`` of ``turns``; its runs are spread evenly."""
    return (turn + 1) * runs // turns > turn * runs // turns


class Tournament:
    """Runs contenders against each other.

    Args:
        contenders: Set up already.
        progress: Called with (contender, turn, turns) before each run; turn -1 is the warm-up.

    Attributes:
        failed: Why a contender dropped out, by its name.
    """

    def __init__(self, contenders: Sequence[Contender], progress: Callable[[str, int, int], None]) -> None:
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
        samples: dict[str, list[Sample]] = {c.name: [] for c in taking}
        runs = {c.name: min(c.runs, most) for c in taking}
        turns = max(runs.values(), default=0)
        for turn in range(-1, turns):
            request = requests[(turn + 1) % len(requests)]
            for contender in taking:
                if contender.name in self.failed or (turn >= 0 and not takes_part(turn, runs[contender.name], turns)):
                    continue
                self._progress(contender.name, turn, turns)
                try:
                    sample = contender.run(request)
                except NotMeasured as error:
                    self.failed[contender.name] = str(error)
                    contender.close()
                    continue
                if turn >= 0:
                    samples[contender.name].append(sample)
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
