"""The audit as a whole: verdicts follow what was measured, and controls can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privtensors.audit.obfuscation import (
    Attacker,
    Classifier,
    Examples,
    Material,
    ObfuscationAudit,
    ObfuscationOptions,
    Outcome,
    Row,
    Target,
    answers_of,
    audit,
    plot_recovery,
    statements,
    tables_of,
    verdicts,
)
from privtensors.audit.obfuscation.audit import attack_streams
from privtensors.errors import AuditError, InvalidInput
from tests.unit.audit.obfuscation.small import SIZE, WORDS, bert, language, schemes, unrelated

OPTIONS = ObfuscationOptions(tokens=200, volumes=(200, 5_000), seeds=5, common=100, layers=(1, 2), state_tokens=50)
TEXT = Material(language(10_000, seed=1) + 5, language(40_000, seed=2) + 5, language(80, seed=3) + 5)


def run(*targets: Target, classifier: Classifier | None = None) -> ObfuscationAudit:
    return audit(bert(), tables_of(bert()), targets, TEXT, OPTIONS, words=WORDS, classifier=classifier)


def outcome(found: ObfuscationAudit, scheme: str, attacker: Attacker) -> list[Outcome]:
    return [one.outcome for one in found.found if (one.scheme, one.attacker) == (scheme, attacker)]


def examples() -> Examples:
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 205, (int(length),), generator=draw) for length in torch.randint(4, 30, (120,), generator=draw)]
    labels = torch.tensor([int((one > 100).float().mean() > 0.5) for one in texts])
    return Examples(texts[:80], labels[:80], texts[80:], labels[80:])


def test_verdicts_follow_the_measurements() -> None:
    made = schemes()
    plain = answers_of(bert(), torch.arange(SIZE))
    found = run(
        made.vocabulary_only(), made.hidden_permutation(2.0), made.equivariant(), made.unrelated(), classifier=Classifier(plain, examples())
    )
    assert found.passed, found.faults
    assert outcome(found, "vocabulary", Attacker.SERVER) == [Outcome.FAILS]
    assert outcome(found, "equivariant", Attacker.SERVER) == [Outcome.FAILS]
    assert outcome(found, "equivariant", Attacker.READER)[1] is not Outcome.STOPS
    assert not any(one.scheme.startswith("control") for one in found.found)
    exact, noisy = found.utility["equivariant", 0.0], found.utility["vocabulary + hidden permutation", 2.0]
    assert exact.fidelity > 0.9999 and exact.agreement == 1.0 and noisy.fidelity < 0.99
    assert "control: unrelated weights" not in {scheme for scheme, _ in found.utility}
    assert found.plays and found.brute_force_digits > 50


def test_a_stronger_and_a_weaker_scheme_flip_the_verdict() -> None:
    made = schemes()
    stronger = replace(made.vocabulary_only(), scheme="planted: stronger", tables=unrelated(), model=None)
    weaker = replace(made.vocabulary_only(), scheme="planted: weaker", plain=torch.arange(SIZE), tables=made.public, model=None)
    found = run(stronger, weaker)
    assert outcome(found, "planted: stronger", Attacker.SERVER) == [Outcome.STOPS]
    assert outcome(found, "planted: weaker", Attacker.SERVER) == [Outcome.FAILS]
    assert outcome(found, "planted: weaker", Attacker.READER) == [Outcome.FAILS, Outcome.FAILS]
    said = statements(found.found)
    assert any("planted: stronger" in one and "server" in one and "stops" in one for one in said)
    assert any("planted: weaker" in one and "ids as they are" in one for one in said)


def test_controls_can_fail() -> None:
    made = schemes()
    leaky = replace(made.unrelated(), tables=made.vocabulary_only().tables)
    found = run(leaky)
    assert not found.passed and "nothing to do with the model" in found.faults[0]
    blind = replace(made.vocabulary_only(), tables=unrelated(), model=None)
    assert "rows in another order" in run(blind).faults[0]


def row(scheme: str, running: float, *, attacker: Attacker = Attacker.READER, volume: int | None = 100, attack: str = "a") -> Row:
    return Row(scheme, 0.0, attacker, attack, volume, running / 2, running, 0.1)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, Outcome.STOPS), (0.049, Outcome.STOPS), (0.05, Outcome.SLOWS), (0.49, Outcome.SLOWS), (0.5, Outcome.FAILS)],
)
def test_the_best_attack_decides(share: float, expected: Outcome) -> None:
    [found] = verdicts([row("s", share, attack="best"), row("s", share / 3, attack="other")])
    assert found.outcome is expected and found.best == "best"


def test_schemes_that_fare_alike_share_a_sentence() -> None:
    found = verdicts([row("one", 0.3), row("two", 0.3), row("three", 0.9)])
    assert len(statements(found)) == 2 and statements(found)[0].startswith("one; two | ")


def test_json_and_plot(tmp_path: Path) -> None:
    made = schemes()
    found = run(made.vocabulary_only(), made.hidden_permutation(), made.hidden_permutation(1.0))
    kept = found.to_dict()
    assert {one["attacker"] for one in kept["rows"]} == {"server", "reader", "informed"} and kept["faults"] == []
    target = plot_recovery(found, tmp_path / "recovery.png")
    assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(AuditError, match="plot is"):
        plot_recovery(found, tmp_path / "recovery.txt")


def test_options_are_checked() -> None:
    for wrong in ({"tokens": 0}, {"volumes": ()}, {"volumes": (0,)}, {"layers": ()}, {"layers": (-1,)}):
        with pytest.raises(InvalidInput):
            replace(OPTIONS, **wrong)


def test_known_texts_are_not_those_that_are_read() -> None:
    victim = language(10_000, seed=1) % 20 + 5
    found = audit_streams(Material(victim, language(40_000, seed=2) + 5, TEXT.day))
    expected = float(torch.isin((language(40_000, seed=2) + 5)[:10_000], victim).float().mean())
    assert 0 < expected < 1 and found[-1] == pytest.approx(expected)


def audit_streams(text: Material) -> list[float]:
    rows = attack_streams(schemes().vocabulary_only(), text, OPTIONS, WORDS)
    return [one.running for one in rows if one.attacker is Attacker.INFORMED]
