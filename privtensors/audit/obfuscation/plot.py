"""Token recovery as a picture: over the noise for a server, over the volume for readers."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, Final

from privtensors.audit.obfuscation.attack import Attacker
from privtensors.audit.obfuscation.audit import ObfuscationAudit
from privtensors.audit.obfuscation.verdict import Row
from privtensors.errors import AuditError, MissingExtra

_KINDS: Final = (".png", ".svg", ".pdf")


def plot_recovery(audit: ObfuscationAudit, path: str | os.PathLike[str]) -> Path:
    """Draw what was recovered. Left: by the server's best attack, over the noise, beside the cost. Right: by readers, over the volume.

    Args:
        audit: What was found.
        path: The picture: .png, .svg or .pdf; a file that is there is replaced.

    Returns:
        The path.

    Raises:
        AuditError: The path has another ending, or cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in _KINDS:
        raise AuditError("a plot is .png, .svg or .pdf", where=str(target), fix="Give a path with one of these endings")
    try:
        figures: Any = importlib.import_module("matplotlib.figure")  # no pyplot: it opens displays and keeps figures
    except ImportError as error:
        raise MissingExtra("matplotlib is not installed", where="plot", fix="Run: pip install privtensors[dp]") from error
    figure = figures.Figure(figsize=(12.0, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_noise(left, audit)
    _draw_volume(right, audit)
    for axes in (left, right):
        axes.set_ylim(-0.03, 1.03)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    try:
        figure.savefig(target, dpi=150)
    except OSError as error:
        raise AuditError(f"it cannot be written ({error.strerror})", where=str(target), fix="Choose another path") from error
    return target


def _draw_noise(axes: Any, audit: ObfuscationAudit) -> None:
    real = {one.scheme for one in audit.found}
    rows = [row for row in audit.rows if row.attacker is Attacker.SERVER and row.scheme in real]
    for colour, scheme in enumerate(dict.fromkeys(row.scheme for row in rows)):
        own = [row for row in rows if row.scheme == scheme]
        # The embedding's attacks apart: noise stops some and not others, and that is what the picture is about.
        noises = sorted({row.noise for row in own})
        if len(noises) > 1:
            for style, attack in zip(("-", "--", ":", "-."), _telling(own), strict=False):
                at = [(row.noise, row.tokens) for row in own if row.attack == attack]
                axes.plot(*zip(*sorted(at), strict=True), style, color=f"C{colour}", marker="o", label=f"{scheme}: {attack}")
        else:
            best = max(own, key=lambda row: row.tokens)
            axes.plot(best.noise, best.tokens, marker="x", linestyle="", color=f"C{colour % 10}", label=f"{scheme}: {best.attack}")
    cost = sorted((noise, one) for (scheme, noise), one in audit.utility.items() if "hidden permutation" in scheme)
    if cost:
        values = [one.fidelity if one.agreement is None else one.agreement for _, one in cost]
        name = "fidelity" if cost[0][1].agreement is None else "label agreement"
        axes.plot([noise for noise, _ in cost], values, color="black", linewidth=2, label=f"cost: {name}")
    axes.set_xlabel("noise on the weights, standard deviations")
    axes.set_ylabel("tokens of the vocabulary recovered by the server")


def _telling(rows: list[Row]) -> tuple[str, ...]:
    """The attack that is strongest over all noises, and the two that lose most by noise."""
    shares = {name: [row.tokens for row in rows if row.attack == name] for name in dict.fromkeys(row.attack for row in rows)}
    strongest = max(shares, key=lambda name: sum(shares[name]))
    others = sorted((name for name in shares if name != strongest), key=lambda name: min(shares[name]) - max(shares[name]))
    return (strongest, *others[:2])


def _draw_volume(axes: Any, audit: ObfuscationAudit) -> None:
    rows = [row for row in audit.rows if row.volume is not None]
    drawn: set[tuple[Any, ...]] = set()
    for scheme in dict.fromkeys(row.scheme for row in rows):
        for attack in dict.fromkeys(row.attack for row in rows if row.scheme == scheme):
            own = sorted({(row.volume or 0, row.running) for row in rows if (row.scheme, row.attack) == (scheme, attack)})
            key = (attack, tuple(own))
            if key not in drawn and any(share > 0.01 for _, share in own):  # one code, one curve, however many schemes use it
                drawn.add(key)
                style = "--" if attack == "known plaintext" else "-"
                axes.plot(*zip(*own, strict=True), style, marker="o", label=f"{attack} ({scheme})")
    axes.set_xscale("log")
    axes.set_xlabel("tokens read under one key (known plaintext: tokens known)")
    axes.set_ylabel("running text recovered without the weights")
