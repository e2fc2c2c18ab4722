"""What the demo prints for people, at 80 columns or more."""

from __future__ import annotations

import os
import re
from typing import Final, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from privtensors.cli.demo_result import Answer, Job
from privtensors.cli.text import printable
from privtensors.report import who_sees_what

SHOWN: Final = 24
_PIPE_WIDTH: Final = 100
_WIDEST: Final = 120
_WIDEST_LABEL: Final = 14


def show(job: Job, seconds: float) -> None:
    """Print everything about ``job`` on standard output; ``seconds`` is how long the whole command took."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    elif console.width > _WIDEST:
        console = Console(highlight=False, width=_WIDEST)
    console.print()
    console.print(_answers(job, console.width))
    console.print()
    console.print(_summary(job, seconds))
    console.print()
    console.print(who_sees_what(job.explanation))
    console.print()
    if job.simulated:
        line = Text("SIMULATED: one process holds every party's view: real answers and costs, no protection.", "bold")
        console.print(Padding(line, (0, 0, 0, 1)))


def _answers(job: Job, width: int) -> Table:
    known = any(answer.label is not None for answer in job.answers)
    title = Text(f"{printable(job.model)} ({job.model_class}), on secret shares", "bold")
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS)
    names = ["text", *(["truth"] if known else []), "plain", "private", "confidence"]
    labels = max(len(printable(label)) for a in job.answers for label in (a.plain, a.private, a.label or ""))
    widths = [max(min(labels, _WIDEST_LABEL), len(name)) for name in names[1:-1]] + [len(names[-1])]
    room = width - sum(widths) - 3 * len(names) - 1  # a column has a blank on both sides and one more between two
    for name, column in zip(names, [room, *widths], strict=True):
        justify: Literal["left", "right"] = "right" if name == "confidence" else "left"
        table.add_column(name, width=column, no_wrap=True, justify=justify, overflow="ellipsis")
    shown = [answer for number, answer in enumerate(job.answers) if number < SHOWN or answer in job.flips]
    for a in shown:
        flipped = "bold red" if a.plain != a.private else ""
        cells = [Text(_shortened(a, room, end=job.training is not None))]
        cells += [Text(printable(a.label or ""))] if known else []
        cells += [Text(printable(a.plain)), Text(printable(a.private), flipped), Text(f"{a.private_confidence:.3f}")]
        table.add_row(*cells)
    if len(shown) < len(job.answers):
        table.caption, table.caption_justify = f"and {len(job.answers) - len(shown)} more; --json has all of them", "left"
    return table


def _shortened(answer: Answer, room: int, *, end: bool) -> str:
    """What fits of a text; its end where the model reads the end."""
    text = printable(" ".join(re.sub(r"<br\s*/?>", " ", answer.text).split()))
    if len(text) <= room:
        return text
    if end:
        return "… " + text[-(room - 2) :].partition(" ")[2]
    return text[: room - 2].rpartition(" ")[0] + " …"


def _summary(job: Job, seconds: float) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(ratio=1)
    for name, line in _lines(job, seconds):
        table.add_row(Text(" " + name), Text(line))
    return table


def _lines(job: Job, seconds: float) -> list[tuple[str, str]]:
    count, f = len(job.answers), job.forwards
    plain, private = job.accuracy("plain"), job.accuracy("private")
    smallest = min(a.plain_margin for a in job.answers)
    lines = [("agreement", f"{count - len(job.flips)} of {count} private answers equal the plain ones")]
    lines.append(("logit error", f"{job.largest_logit_error:.2g} at most; smallest plain margin {smallest:.2g}"))
    if plain is not None and private is not None:
        lines.append(("accuracy", f"plain {plain:.1%}, private {private:.1%} on these {count} held-out reviews"))
    if job.check_accuracy is not None:
        lines.append(("", f"plain {job.check_accuracy:.1%} on the first {job.check_texts} held-out reviews"))
    if t := job.training:
        what = f"head and last layer ({t.trained_parameters:,} of {job.parameters:,} parameters), in plain"
        lines.append(("training", f"{what}, on {t.reviews:,} other reviews: {t.seconds:.1f} s; {t.accuracy:.1%} right on those"))
    offline, online, setup = f.offline_seconds / count, f.online_seconds / count, job.setup
    dealt = f"the dealer sent {_bytes(f.dealer_bytes / count)}, offline"
    shared = f"sharing the weights, once: {setup.offline_seconds + setup.online_seconds:.1f} s"
    lines += [
        ("time", f"{offline + online:.2f} s a text: {offline:.2f} s offline, {online:.2f} s online; {f.cpu_seconds / count:.2f} s of CPU"),
        ("", f"both parties and the dealer share this machine; the whole command took {seconds:.0f} s"),
        ("traffic", f"each party sent {_bytes(f.bytes_sent_per_party / count)} a text; {dealt}"),
        ("rounds", f"{f.rounds / f.forwards:.0f} a forward; {_count(f.forwards, 'forward')} of up to {-(-count // f.forwards)} texts"),
        ("set-up", f"{shared}; each party sent {_bytes(setup.bytes_sent_per_party)}"),
    ]
    cut = sum(a.truncated for a in job.answers)
    if cut:
        side = "last" if job.training is not None else "first"
        lines.append(("cut", f"{cut} of {count} texts are longer than {job.max_tokens} tokens: the {side} ones were read"))
    ledger = job.ledger
    lines += [
        ("ledger", f"{_count(ledger.rows_of_this_run, 'reveal')}, one per forward; the chain of {_count(ledger.rows, 'row')} holds"),
        ("", printable(ledger.path)),
        ("head", ledger.head),
    ]
    return lines


def _bytes(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
