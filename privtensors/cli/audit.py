"""``privtensors audit``: try to refute what this package claims, with what an attacker would see."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtensors.cli.audit_obfuscation import obfuscation
from privtensors.cli.ledger_output import one_line_errors
from privtensors.cli.text import printable
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from privtensors.audit.dp import AuditOptions, AuditResult
    from privtensors.audit.findings import Finding
    from privtensors.audit.subject import Subject
    from privtensors.audit.table import BugRow, Schedule

app = typer.Typer(help="Try to refute what is claimed, with what an attacker would see.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command(epilog="Example: privtensors audit dp --epsilon 2 --canaries 2000 --json")
def dp(
    model: Annotated[
        Path | None, typer.Option("--model", metavar="FOLDER", help="A transformers sequence classifier; default: a tiny model.")
    ] = None,
    epsilon: Annotated[float, typer.Option("--epsilon", metavar="E", help="The epsilon that the run claims.")] = 2.0,
    delta: Annotated[float, typer.Option("--delta", metavar="D", help="Its delta.")] = 1e-6,
    canaries: Annotated[int, typer.Option("--canaries", min=10, metavar="M", help="How many canaries.")] = 2000,
    guesses: Annotated[
        int | None, typer.Option("--guesses", min=2, metavar="R", help="How many guesses; default: a fifth of the canaries.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps of the run.")] = 50,
    rate: Annotated[float, typer.Option("--rate", metavar="Q", help="Sampling rate of the run.")] = 0.2,
    clipping_norm: Annotated[float, typer.Option("--clipping-norm", metavar="C", help="Clipping norm of the run.")] = 1.0,
    confidence: Annotated[float, typer.Option("--confidence", metavar="P", help="Of the bounds, together.")] = 0.999,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also audit the run without noise: the audit must refute it.")
    ] = True,
    bugs: Annotated[bool, typer.Option("--bugs", help="Instead: plant known mistakes and show what finds each of them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")] = False,
) -> None:
    """Fine-tune on public random data with canaries, and bound from below the epsilon that the run really had.

    Exit code 0 only if no bound is above the claim, every check of the parts passes, and the control shows that the audit
    could have refuted the claim.
    """
    with one_line_errors(as_json):
        if bugs:
            _bugs(as_json)
            return
        from privtensors.audit.dp import AuditOptions
        from privtensors.audit.one_run import check_delta
        from privtensors.audit.setup import Setup
        from privtensors.audit.subject import folder_subject, tiny_subject
        from privtensors.audit.table import Schedule, quick_checks

        if not 0 < rate <= 1:
            raise UsageError(f"a sampling rate of {rate:g}", where="audit dp", fix="Give --rate from above 0 to 1")
        check_delta(delta, canaries)
        schedule = Schedule(epsilon, delta, rate, steps, clipping_norm)
        options = AuditOptions(canaries, None if guesses is None else (guesses,), confidence)

        def subject() -> Subject:
            return tiny_subject() if model is None else folder_subject(model)

        checks = quick_checks(Setup(), subject())
        found = _audited(subject(), schedule, options, noisy=True, progress=not as_json)
        held = _audited(subject(), schedule, options, noisy=False, progress=not as_json) if control else None
        refutable = None if held is None else _refutable(found, held)
        passed = found.passed and all(one.passed for one in checks) and refutable is not False
        if as_json:
            typer.echo(json.dumps(_json(found, held, refutable, checks, passed)))
        else:
            _show(found, held, refutable, checks)
    if not passed:
        raise typer.Exit(1)


app.command(epilog="Example: privtensors audit obfuscation --plot recovery.png")(obfuscation)


def _audited(subject: Subject, schedule: Schedule, options: AuditOptions, *, noisy: bool, progress: bool) -> AuditResult:
    """One run by ``fit``, on a ledger of its own: the data are public, and nobody's budget pays."""
    from dataclasses import replace

    from privtensors.accounting import Ledger
    from privtensors.audit.dp import audit_run
    from privtensors.audit.table import quiet
    from privtensors.audit.trainers import train_by_fit

    units = options.canaries + len(next(iter(subject.dataset.values())))
    promise = (schedule if noisy else replace(schedule, epsilon=math.inf)).promise()
    chosen = replace(schedule.options(units), progress=None if progress else False)
    with tempfile.TemporaryDirectory() as folder, quiet():
        train = train_by_fit(promise, chosen, Ledger(Path(folder) / "audit.sqlite"))
        return audit_run(subject.model, subject.dataset, subject.loss, train, schedule.clipping_norm, options)


def _refutable(found: AuditResult, held: AuditResult) -> bool:
    """Whether the run without noise contradicts the claim of the run with noise."""
    from privtensors.accounting import SampledGaussian
    from privtensors.audit.tradeoff import PrivacyCurve, refutes

    claim = found.claim
    curve = PrivacyCurve.sampled_gaussian(SampledGaussian(claim.noise_multiplier, claim.rate, claim.steps))
    return any(refutes(one, curve, 1 - found.confidence) for one in held.outcomes)


def _json(
    found: AuditResult, held: AuditResult | None, refutable: bool | None, checks: tuple[Finding, ...], passed: bool
) -> dict[str, Any]:
    from dataclasses import asdict

    control = None if held is None else {**held.to_dict(), "refutable": refutable}
    return {"ok": passed, "audit": found.to_dict(), "control": control, "checks": [asdict(one) for one in checks]}


def _show(found: AuditResult, held: AuditResult | None, refutable: bool | None, checks: tuple[Finding, ...]) -> None:
    claim, [outcome, *_] = found.claim, found.outcomes
    typer.echo(
        f"run        {claim.steps} steps of fit at rate {claim.rate:.3f}, noise multiplier {claim.noise_multiplier:.3f}, "
        f"clipping norm {claim.clipping_norm:g}, {outcome.canaries} canaries"
    )
    typer.echo(f"claimed    ε {claim.epsilon:.3f} at δ {claim.delta:g}, by the ledger's accountant")
    typer.echo(f"guesses    {outcome.correct} of {outcome.guesses} right")
    typer.echo(f"bound      ε is at least {found.lower_bound:.3f}, whatever the mechanism (Steinke, Nasr and Jagielski 2023)")
    if found.schedule_bound is not None and found.p_value is not None:
        typer.echo(f"           ε is at least {found.schedule_bound:.3f} for this schedule (f-DP: Mahloujifar et al. 2025)")
    typer.echo(f"           both at once with confidence {found.confidence:g}")
    for one in checks:
        typer.echo(f"{one.detector:10} {'passes' if one.passed else 'FAILS'}: {one.detail}")
    if held is not None:
        text = "the audit refutes the claim for it" if refutable else "the audit CANNOT refute the claim even for it: take more canaries"
        typer.echo(f"control    without noise ε is at least {held.lower_bound:.3f}: {text}")
    typer.echo(f"verdict    {'the claim stands' if found.passed else 'the claim is REFUTED'}")


def _bugs(as_json: bool) -> None:
    from privtensors.audit.table import bug_table

    def advance(name: str) -> None:
        if not as_json:
            typer.echo(f"planting: {name}", err=True)

    rows = bug_table(advance)
    if as_json:
        typer.echo(json.dumps({"ok": all(row.as_expected for row in rows), "bugs": [row.to_dict() for row in rows]}))
    else:
        _print_bugs(rows)
    if not all(row.as_expected for row in rows):
        raise typer.Exit(1)


def _print_bugs(rows: tuple[BugRow, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from privtensors.audit.table import DETECTORS

    table = Table(title="Planted bugs and what finds them")
    for name in ("planted", *DETECTORS, "must be found by"):
        table.add_column(name, no_wrap=name in DETECTORS)
    for row in rows:
        by = {one.detector: one for one in row.findings}
        cells = ["passes" if by[name].passed else f"FOUND ({by[name].value:.3g})" for name in DETECTORS]
        table.add_row(row.bug, *cells, ", ".join(row.caught_by) or "nobody")
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    for row in rows:
        if not row.as_expected:
            typer.echo(printable(f"not as it must be: {row.bug}: found by {', '.join(row.fired) or 'nobody'}"))
