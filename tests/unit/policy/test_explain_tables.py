"""``explain()`` tells embedding tables of the server from those of the client."""

from __future__ import annotations

import pytest

from privtensors.backends.mpc.technique import MPC
from privtensors.errors import ParameterError
from privtensors.policy import Explanation, Policy

CLIENT, SERVER = (Policy(infer=[MPC(embeddings=who)]) for who in ("client", "server"))
KNOWN_IDS = "token ids that it alone knows"


def forms(explanation: Explanation, asset: str) -> dict[str, str]:
    return {row.party: row.form for row in explanation.rows if row.asset == asset}


@pytest.mark.parametrize(
    ("policy", "asset", "expected"),
    [
        (CLIENT, "token ids", ("plaintext", "sizes and timing only", "sizes and timing only")),
        (SERVER, "token ids", ("plaintext", "masked values; share 2 of 2", "masks it made")),
        (CLIENT, "embedding tables", ("plaintext", "nothing", "nothing")),
        (SERVER, "embedding tables", ("masked values; share 1 of 2", "plaintext", "masks it made")),
        (CLIENT, "inputs", ("plaintext", "masked values; share 2 of 2", "masks it made")),
        (SERVER, "inputs", ("masked values; share 1 of 2", "masked values; share 2 of 2", "masks it made")),
    ],
)
def test_who_sees_what(policy: Policy, asset: str, expected: tuple[str, ...]) -> None:
    assert forms(policy.explain(), asset) == dict(zip(("client", "server", "dealer"), expected, strict=True))


def test_both_say_in_words_who_holds_the_tables() -> None:
    client, server = (" ".join(str(p.explain()).split()) for p in (CLIENT, SERVER))
    assert "The client holds the embedding tables" in client and KNOWN_IDS not in client
    assert "The server holds the embedding tables" in server and KNOWN_IDS in server
    assert "never which ids or whether two are equal" in server and "never leave it" not in server


def test_collusions() -> None:
    found = {c.parties: set(c.assets) for c in SERVER.explain().collusions}
    assert found == {
        ("client", "server"): {"inputs", "activations"},
        ("client", "dealer"): {"inputs", "embedding tables", "model weights", "activations"},
        ("server", "dealer"): {"token ids", "inputs", "activations", "outputs"},
    }


def test_the_two_are_different_policies_also_in_a_file() -> None:
    assert CLIENT != SERVER and 'embeddings = "server"' in SERVER.to_toml()
    assert Policy.from_toml(SERVER.to_toml()) == SERVER


@pytest.mark.parametrize("bad", ["dealer", "", None, 1])
def test_nobody_else_can_hold_them(bad: object) -> None:
    with pytest.raises(ParameterError, match="embeddings"):
        MPC(embeddings=bad)  # type: ignore[arg-type]
