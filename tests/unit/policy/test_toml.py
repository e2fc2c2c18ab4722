"""Policy files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.clear.technique import Clear
from privtensors.backends.mpc.technique import MPC
from privtensors.errors import CompositionError, PolicyFileError
from privtensors.policy import Policy, Stage
from privtensors.policy.toml import dump, load
from tests.unit.policy import toys

GOOD = 'version = 1\nreceiver = "client"\n\n[[infer]]\ntechnique = "mpc"\nfractional_bits = 20\n'


@dataclass(frozen=True)
class Many(toys.Telemetry):
    """A technique with one parameter of each kind."""

    name: ClassVar[str] = "toy-many"
    text: str = ""
    number: float = 0.5
    count: int = 1
    flag: bool = False
    bounds: tuple[float, ...] = ()
    maybe: int | None = None


@dataclass(frozen=True)
class Secretive(toys.Telemetry):
    """A technique with a secret."""

    name: ClassVar[str] = "toy-secretive"
    key: str = field(default="", repr=False)


def test_reads_a_file_and_its_text(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    assert Policy.from_toml(path) == Policy.from_toml(str(path)) == Policy.from_toml(GOOD) == Policy(infer=[MPC(fractional_bits=20)])


@pytest.mark.parametrize(
    "policy", [Policy(infer=[MPC()]), Policy(infer=[Clear()], receiver="server"), Policy(infer=[MPC()], outputs="argmax")]
)
def test_round_trip(policy: Policy) -> None:
    assert Policy.from_toml(policy.to_toml()) == policy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[infer]]\ntechnique = "mpc"\n', "key 'version' is missing.*version = 1"),
        (GOOD.replace("version = 1", "version = 2"), "version 2 is not supported.*Allowed: 1"),
        (GOOD.replace("version = 1", "version = true"), "version True is not supported"),
        (GOOD.replace("version = 1", 'version = "1"'), "version '1' is not supported"),
        ("colour = 3\n" + GOOD, "unknown key 'colour'.*Allowed: version, receiver, outputs, train, infer, release"),
        (GOOD + "rounds = 3\n", r"\[\[infer\]\] 1: unknown key 'rounds' of technique 'mpc'.*fractional_bits, embeddings"),
        (GOOD.replace("20", '"20"'), "'fractional_bits': str given.*an integer"),
        (GOOD.replace("20", "20.0"), "'fractional_bits': float given.*an integer"),
        (GOOD.replace("20", "true"), "'fractional_bits': bool given.*an integer"),
        (GOOD.replace("20", "40"), "must be 16 to 20, got 40"),
        (GOOD + 'embeddings = "dealer"\n', "'embeddings'.*Allowed: one of 'client', 'server'"),
        (GOOD.replace('"mpc"', '"mcp"'), "unknown technique 'mcp'.*Allowed: .*clear.*mpc"),
        (GOOD.replace('"mpc"', "3"), "key 'technique' must be a string"),
        (GOOD.replace("technique", "tecnique"), "key 'technique' is missing.*Allowed: .*mpc"),
        (GOOD.replace('"client"', "3"), "receiver: must be a string"),
        ('outputs = "logits"\n' + GOOD, 'outputs: must say how much.*Allowed: "full", "argmax"'),
        ("outputs = 3\n" + GOOD, "outputs: must say how much"),
        (GOOD.replace("[[infer]]", "[infer]"), "infer: must be an array of tables"),
        ("version = 1\ninfer = 3\n", "infer: must be an array of tables"),
        ("version = = 1\n", "not valid TOML.*line 1"),
    ],
)
def test_mistakes_name_file_key_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyFileError, match=said) as caught:
        Policy.from_toml(path)
    assert "policy.toml" in caught.value.where and caught.value.fix


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "huge.toml").write_bytes(b" " * (1 << 20) + b"\n")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "binary.toml", tmp_path / "huge.toml"):
        with pytest.raises(PolicyFileError, match=r"cannot be read|not a UTF-8|larger than"):
            Policy.from_toml(path)


def test_a_file_that_does_not_compose_says_why() -> None:
    with pytest.raises(CompositionError, match="only one technique"):
        Policy.from_toml(GOOD + '\n[[infer]]\ntechnique = "clear"\n')
    with pytest.raises(CompositionError, match="protects nothing"):
        Policy.from_toml("version = 1\n")


def test_secrets_are_not_written() -> None:
    with pytest.raises(PolicyFileError, match=r"Secretive\.key.*secret") as caught:
        dump({Stage.INFER: [Secretive(key="hunter2")]}, "client")
    assert "hunter2" not in str(caught.value)


@given(
    st.builds(
        Many,
        text=st.text(st.characters(exclude_categories=("Cs",))),
        number=st.floats(allow_nan=False),
        count=st.integers(-(2**63), 2**63 - 1),
        flag=st.booleans(),
        bounds=st.lists(st.floats(allow_nan=False)).map(tuple),
        maybe=st.none() | st.integers(0, 9),
    )
)
def test_every_parameter_survives(technique: Many) -> None:
    text = dump({Stage.INFER: [technique]}, "client")
    document = load(text, resolve=lambda name: Many, names=lambda: ("toy-many",))
    assert document.infer == (technique,)
