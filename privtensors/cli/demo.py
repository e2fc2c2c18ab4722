"""``privtensors demo``: the main job. A real model classifies real text on secret shares."""

from __future__ import annotations

import json as json_module
import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from privtensors.cli.demo_job import Request
from privtensors.errors import PrivTensorsError, UsageError

REVIEWS, FULL, HELD_OUT, TRAIN = 24, 200, 2000, 1500


def demo(
    reviews: Annotated[
        int | None, typer.Option(min=1, max=HELD_OUT, metavar="N", help=f"How many held-out reviews to classify [{REVIEWS}].")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help=f"The first {FULL} held-out reviews: a few minutes.")] = False,
    train: Annotated[int | None, typer.Option(min=32, max=20_000, metavar="N", help=f"Reviews to train on [{TRAIN}].")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="Classify this text instead; repeat it.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_NAME", help="Your own sequence-classification model, with --text; no training.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=8, max=512, metavar="N", help="Cut longer texts [64; with --model 128].")] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The ledger file [PRIVTENSORS_LEDGER, else the user's data directory].")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")] = False,
) -> None:
    """Classify real film reviews with a real model on secret shares, and compare with the plain answers.

    MiniLM gets a sentiment head, trained in seconds on real reviews. Both computing parties and the dealer run in this
    process: the run is SIMULATED. Exit code 0 only if every answer that flipped had a plain margin under twice the
    largest logit error, that error is within its limit, and the ledger holds one row per forward.
    """
    start = time.perf_counter()
    request = _request(reviews, full, train, model, tuple(text or ()), max_tokens, ledger)
    logging.getLogger("privtensors").setLevel(logging.ERROR)  # the report says SIMULATED itself
    from privtensors.cli import demo_job
    from privtensors.cli.stages import Stages

    try:
        job = demo_job.run(request, Stages())
    except PrivTensorsError as error:
        if json:  # one object in any case; the line on standard error comes from the caller
            facts = {"error": type(error).__name__, "where": error.where, "what": error.what, "fix": error.fix}
            typer.echo(json_module.dumps({"ok": False, **facts}, ensure_ascii=False))
        raise
    seconds = time.perf_counter() - start
    if json:
        typer.echo(json_module.dumps({**job.to_dict(), "total_seconds": seconds}, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        from privtensors.cli.demo_show import show

        show(job, seconds)
    for failure in job.failures():
        typer.echo(f"FAILED: {failure}", err=True)
    if job.failures():
        raise typer.Exit(1)


def _request(
    reviews: int | None,
    full: bool,
    train: int | None,
    model: str | None,
    texts: tuple[str, ...],
    max_tokens: int | None,
    ledger: Path | None,
) -> Request:
    """Refuses options that contradict each other.

    Raises:
        UsageError: Says which.
    """
    given = {"--reviews": reviews, "--full": full or None, "--train": train, "--model": model, "--text": texts or None}
    for one, other in (("--reviews", "--full"), ("--text", "--reviews"), ("--text", "--full"), ("--model", "--train")):
        if given[one] is not None and given[other] is not None:
            raise UsageError(f"{one} and {other} exclude each other", where="privtensors demo", fix="Give one of them")
    if model is not None and not texts:
        raise UsageError("--model needs a text to classify", where="privtensors demo", fix='Add --text "…"; repeat it for more texts')
    if any(not text.strip() for text in texts):
        raise UsageError("an empty text", where="--text", fix="Give some words")
    return Request(reviews or (FULL if full else REVIEWS), train or TRAIN, model, texts, max_tokens, ledger)
