"""Private lookups: what each party receives is uniform and says nothing about the ids, or about the table.

Client, server and dealer run apart, so that what is looked at is what really arrived. Every check is shown to fail on a
planted bug.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.backends.mpc.correlations import PartyCorrelations
from privtensors.backends.mpc.dealer import Mask
from privtensors.backends.mpc.hidden import UNKNOWN
from tests.unit.backends.mpc.roles import Outcome, Role, apart
from tests.unit.backends.mpc.uniformity import REJECT, chi_square, p_values, skew

SIZE, WIDTH, COUNT = 40, 6, 1500
IDS = {
    "all the first": torch.zeros(COUNT, dtype=torch.int64),
    "all the last": torch.full((COUNT,), SIZE - 1),
    "all 17": torch.full((COUNT,), 17),
    "every one in turn": torch.arange(COUNT) % SIZE,
}
TABLES = {"zeros": torch.zeros(SIZE, WIDTH), "one constant": torch.full((SIZE, WIDTH), 5.0)}
QUESTION, SIGN = (COUNT, SIZE // 8), (COUNT,)


def ask(ids: Tensor, number: int, table: Tensor = TABLES["one constant"]) -> Outcome:
    def job(role: Role) -> Any:
        w, i = role.protect(table, "server"), role.protect(ids, "client")
        return torch.nn.functional.embedding(i, w)._state.payload  # type: ignore[attr-defined]

    return apart(job, number=number)


def asked(run: Outcome) -> tuple[Tensor, Tensor]:
    """The bits (COUNT, SIZE) and signs (COUNT,) that the server received."""
    (question, _), (sign, _) = run.received["server"]
    assert tuple(question.shape) == QUESTION and tuple(sign.shape) == SIGN
    return ((question.unsqueeze(-1) >> torch.arange(8)) & 1).reshape(COUNT, SIZE).to(torch.int64), sign.to(torch.int64) & 1


def suspicious(run: Outcome, ids: Tensor) -> list[float]:
    """p-values of everything the server could test, knowing a guess of the ids."""
    bits, sign = asked(run)
    values = p_values(bits.T.contiguous(), 1)  # bit by bit, over all positions
    at = bits.gather(1, ids.unsqueeze(1)).squeeze(1)  # the bit at the id itself, alone and with the sign
    values += chi_square((2 * at + sign).unsqueeze(0), 4) + chi_square(sign.unsqueeze(0), 2)
    values += chi_square((bits.sum(1) % 2).unsqueeze(0), 2)
    share = run.results["server"].data.reshape(1, -1)
    return values + p_values(share, 64)


@pytest.fixture(scope="module")
def honest() -> dict[str, Outcome]:
    return {name: ask(ids, number) for number, (name, ids) in enumerate(IDS.items(), 1)}


def test_the_server_receives_uniform_bits_whatever_the_ids(honest: dict[str, Outcome]) -> None:
    values = [p for name, run in honest.items() for p in suspicious(run, IDS[name])]
    assert min(values) > REJECT and skew(values) < 2.5


def test_the_difference_of_any_two_questions_is_uniform(honest: dict[str, Outcome]) -> None:
    values = []
    for a, b in itertools.combinations(honest.values(), 2):
        (x, s), (y, t) = asked(a), asked(b)
        values += p_values((x ^ y).T.contiguous(), 1) + chi_square((s ^ t).unsqueeze(0), 2)
    for run in honest.values():  # equal and unequal ids of one request
        bits, sign = asked(run)
        for distance in (1, 2, SIZE):
            values += p_values((bits ^ bits.roll(distance, 0)).T.contiguous(), 1)
            values += chi_square((sign ^ sign.roll(distance)).unsqueeze(0), 2)
    assert min(values) > REJECT and skew(values) < 2.5


def test_sizes_and_what_the_dealer_does_depend_on_no_id_and_no_table(honest: dict[str, Outcome]) -> None:
    runs = [*honest.values(), ask(IDS["all 17"], 9, TABLES["zeros"])]
    plans = [[[(tuple(w.shape), bits) for w, bits in run.received[party]] for party in ("client", "server")] for run in runs]
    assert all(plan == plans[0] for plan in plans)
    # Client: the masked table, once, and the answer. Server: the question and the sign.
    assert plans[0] == [[((SIZE, WIDTH), 64), ((COUNT, WIDTH), 64)], [(QUESTION, 8), (SIGN, 1)]]
    assert len({run.program.digest for run in runs if run.program is not None}) == 1


def client_view(run: Outcome) -> list[Tensor]:
    return [words.flatten() for words, _ in run.received["client"]]


def test_the_client_receives_uniform_words_whatever_the_table() -> None:
    values: list[float] = []
    views = [client_view(ask(IDS["every one in turn"], number, table)) for number, table in enumerate(TABLES.values(), 1)]
    for masked, answer in views:
        table = masked.repeat(answer.numel() // masked.numel() + 1)[: answer.numel()]
        values += p_values(masked, 64) + p_values(answer, 64) + p_values(answer - table, 64)
        assert len(answer.unique()) == answer.numel()
    for one, other in zip(*views, strict=True):
        values += p_values(one - other, 64)
    assert min(values) > REJECT


# Planted bugs.


def without(monkeypatch: pytest.MonkeyPatch, party: int, dims: int, keep: int = 0) -> None:
    """Masks of ``party`` with ``dims`` dimensions are zero, or, with ``keep``, the same for every so many rows."""
    fresh = PartyCorrelations.mask_of

    def planted(self: PartyCorrelations, of: int, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Mask:
        mask = fresh(self, of, shape, dtype)
        if of != party or len(shape) != dims or shape[0] != COUNT:
            return mask
        shares = mask.shares[:, :keep].repeat(1, COUNT // keep + 1, *[1] * (dims - 1))[:, :COUNT] if keep else torch.zeros_like(mask.shares)
        return Mask(shares.contiguous(), UNKNOWN)

    monkeypatch.setattr(PartyCorrelations, "mask_of", planted)


def test_an_unmasked_question_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, 0, 2)
    assert min(suspicious(ask(IDS["all 17"], 3), IDS["all 17"])) < REJECT


def test_an_unmasked_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, 0, 1)
    assert min(suspicious(ask(IDS["all 17"], 3), IDS["all 17"])) < REJECT


def test_a_set_used_twice_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, 0, 2, keep=SIZE)
    bits, _ = asked(ask(IDS["every one in turn"], 3))
    assert min(p_values((bits ^ bits.roll(SIZE, 0)).T.contiguous(), 1)) < REJECT


def test_an_unmasked_answer_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, 1, 2)
    answer = client_view(ask(IDS["all the first"], 3, torch.ones(1, WIDTH)))[1]
    assert len(answer.unique()) < answer.numel()
