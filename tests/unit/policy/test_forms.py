"""The join rules, one by one."""

from __future__ import annotations

import pytest

from privtensors.policy.assets import IMPLICATIONS
from privtensors.policy.facts import Aggregated, Noised, Obfuscated, residual
from privtensors.policy.forms import (
    Aggregate,
    Ciphertext,
    Form,
    Key,
    Mask,
    MaskedValue,
    NoisedValue,
    Nothing,
    ObfuscatedValue,
    Plaintext,
    Share,
    SizesAndTiming,
    close,
    strongest,
)

PLAIN = Plaintext()
NOISY = NoisedValue(1.0, 1e-5, "client", "server")


@pytest.mark.parametrize(
    ("held", "opens"),
    [
        ({Share("s", 0), Share("s", 1)}, True),
        ({Share("s", 0)}, False),
        ({Share("s", 0), Share("t", 1)}, False),
        ({Share("s", 0, 3, 2), Share("s", 2, 3, 2)}, True),
        ({Share("s", 0, 3, 3), Share("s", 2, 3, 3)}, False),
        ({Mask("s"), Share("s", 0)}, True),
        ({Mask("s"), MaskedValue("s")}, True),
        ({Mask("t"), MaskedValue("s")}, False),
        ({MaskedValue("s"), Share("s", 0)}, False),
        ({Mask("s")}, False),
        ({Ciphertext("he", "k")}, False),
        ({Ciphertext("he", "k"), Key("k")}, True),
        ({Ciphertext("he", "k"), Key("j")}, False),
        ({ObfuscatedValue("k"), Key("k")}, True),
        ({ObfuscatedValue("k")}, False),
        ({Aggregate(10), Aggregate(9)}, True),
        ({Aggregate(10), Aggregate(8)}, False),
        ({Aggregate(1)}, True),
        ({NOISY}, False),
        ({NOISY, Aggregate(10)}, False),
        ({SizesAndTiming(), Nothing()}, False),
    ],
)
def test_join_rules(held: set[Form], opens: bool) -> None:
    closed = close({"x": frozenset(held)})["x"]
    assert (PLAIN in closed) is opens
    assert held <= closed


def test_n_and_n_minus_one_give_one_client() -> None:
    closed = close({"x": frozenset({Aggregate(10), Aggregate(9)})})["x"]
    assert Aggregate(1) in closed and str(Aggregate(1)) == "one client's value"


def test_a_key_held_as_an_asset_of_its_own_opens_ciphertexts() -> None:
    view = {"x": frozenset({Ciphertext("he", "k")}), "keys": frozenset({Key("k")})}
    assert PLAIN in close(view)["x"]


def test_shares_of_a_noised_value_join_to_the_noised_value() -> None:
    closed = close({"x": frozenset({Share("s", 0).over(NOISY), Share("s", 1).over(NOISY)})})["x"]
    assert NOISY in closed and PLAIN not in closed
    assert "noised" in str(Share("s", 0).over(NOISY))


def test_rules_do_not_reach_across_assets() -> None:
    closed = close({"x": frozenset({Share("s", 0)}), "y": frozenset({Share("s", 1)})})
    assert PLAIN not in closed["x"] | closed["y"]


def test_inputs_in_plain_give_token_ids() -> None:
    view = {"inputs": frozenset({PLAIN}), "token ids": frozenset[Form]()}
    assert PLAIN in close(view, IMPLICATIONS)["token ids"]
    assert PLAIN not in close({**view, "inputs": frozenset({SizesAndTiming()})}, IMPLICATIONS)["token ids"]


def test_every_form_has_a_rule_by_construction() -> None:
    class Bare(Form):
        def __str__(self) -> str:
            return "bare"

    with pytest.raises(TypeError, match="abstract"):
        Bare()  # type: ignore[abstract]


def test_reading_order() -> None:
    assert strongest({PLAIN, Share("s", 0)}) == (PLAIN,)
    assert strongest({SizesAndTiming(), Share("s", 0)}) == (Share("s", 0),)
    assert strongest(set()) == (Nothing(),)


def test_what_facts_leave_when_opened() -> None:
    noised, summed = Noised("x", 1.0, 1e-5, "client", "zero-out", "server"), Aggregated("x", 10)
    assert residual(frozenset(), "x") == PLAIN
    assert residual(frozenset({summed}), "x") == Aggregate(10)
    assert residual(frozenset({summed, noised}), "x") == NOISY
    assert residual(frozenset({Obfuscated("x", "client", "k")}), "x") == ObfuscatedValue("k")
    assert residual(frozenset({noised}), "y") == PLAIN
