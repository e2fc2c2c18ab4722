"""``torch.nn.functional.embedding`` on shares: who may know the ids, what is refused, what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privtensors import MPC, Session, protect, reveal
from privtensors.backends.mpc.shares import Shares
from privtensors.core import SafeTensor
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, OutOfRange, UnsupportedOp

TABLE = torch.linspace(-2, 2, 50).view(10, 5)
IDS = torch.tensor([[3, 3, 0], [9, 1, 7]])


@pytest.fixture
def session() -> Session:
    return Session(recorder=MemoryRecorder())


def table(session: Session) -> SafeTensor:
    return protect(TABLE, MPC(), owner="server", session=session)


def ids(session: Session, x: Tensor = IDS, owner: str = "client") -> SafeTensor:
    return protect(x, MPC(), owner=owner, session=session)


def plain(session: Session, x: Tensor) -> Tensor:
    return reveal(x, to="client", session=session)


def close(session: Session, x: Tensor, want: Tensor) -> bool:
    return torch.allclose(plain(session, x), want, atol=2.0**-17)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ids_of_the_client_in_a_table_of_the_server(session: Session, dtype: torch.dtype) -> None:
    out = F.embedding(ids(session, IDS.to(dtype)), table(session), padding_idx=0)
    assert isinstance(out, SafeTensor) and out.shape == (2, 3, 5) and out.dtype == torch.float32
    assert close(session, out, TABLE[IDS])


def test_public_ids_cost_nothing(session: Session) -> None:
    w = table(session)
    with session.meter.scope() as scope:
        out = F.embedding(IDS, w)
    assert (scope.spent.rounds, scope.spent.bytes_sent, scope.spent.dealer_bytes) == (0, 0, 0)
    assert close(session, out, TABLE[IDS])


def test_a_public_table_costs_nothing_and_the_server_s_share_is_zero(session: Session) -> None:
    i = ids(session)
    with session.meter.scope() as scope:
        out = F.embedding(i, TABLE)
    assert scope.spent.rounds == 0 and close(session, out, TABLE[IDS])
    payload = out._state.payload
    assert isinstance(payload, Shares) and not payload.data[1].any()


def test_rounds_and_bytes(session: Session) -> None:
    w = table(session)
    backend = session.backend(MPC())
    with session.meter.scope() as first:
        backend.prepare_table(w._state.payload)
    assert (first.spent.rounds, first.spent.bytes_sent) == (1, 8 * TABLE.numel())
    for _ in range(2):
        with session.meter.scope() as scope:
            F.embedding(ids(session), w)
        # 6 ids: 10 bits in 2 bytes and a sign for each, then 5 words for each; the dealer's hints are 5 words for each.
        assert (scope.spent.rounds, scope.spent.bytes_sent, scope.spent.dealer_bytes) == (2, 6 * 2 + 1 + 6 * 5 * 8, 6 * 5 * 8)


def test_views_of_ids_keep_what_the_client_knows(session: Session) -> None:
    i = ids(session)
    assert close(session, F.embedding(i.view(-1)[1:5].unsqueeze(0), table(session)), TABLE[IDS.view(-1)[1:5].unsqueeze(0)])


def test_an_in_place_write_drops_the_masked_table(session: Session) -> None:
    w = table(session)
    F.embedding(ids(session), w)
    before = w._state.payload.table  # type: ignore[attr-defined]
    w.add_(1.0)
    assert close(session, F.embedding(ids(session), w), TABLE[IDS] + 1)
    after = w._state.payload.table  # type: ignore[attr-defined]
    assert before is not None and after is not None and not torch.equal(before.rows[1], after.rows[1])


def test_a_table_is_still_a_matrix(session: Session) -> None:
    w = table(session)
    backend = session.backend(MPC())
    for prepare in (backend.prepare_table, backend.prepare, backend.prepare_table):
        prepare(w._state.payload)
        assert close(session, F.linear(torch.ones(1, 5), w), TABLE.sum(1).unsqueeze(0))
        assert close(session, F.embedding(ids(session), w), TABLE[IDS])


def test_positions_that_the_client_does_not_know_are_refused(session: Session) -> None:
    w = table(session)
    unknown = {
        "a result": ids(session) + 0,
        "the server's": ids(session, owner="server"),
        "a copy": ids(session).clone(),
        "where a maximum lies": F.max_pool2d(protect(torch.rand(1, 2, 2), MPC(), session=session), 2, return_indices=True)[1],
    }
    for x in unknown.values():
        with pytest.raises(UnsupportedOp, match="does not know"):
            F.embedding(x, w)


@pytest.mark.parametrize("bad", [-1, 10, 1000])
@pytest.mark.parametrize("public", [True, False])
def test_positions_outside_the_table_are_refused_without_naming_them(session: Session, bad: int, public: bool) -> None:
    x = IDS.clone()
    x[1, 2] = bad
    with pytest.raises(OutOfRange, match=r"1 positions lie outside 0..9") as caught:
        F.embedding(x if public else ids(session, x), table(session))
    assert str(bad) not in str(caught.value).replace("0..9", "")


def test_a_table_that_is_no_matrix_is_refused(session: Session) -> None:
    cube = protect(TABLE.view(10, 5, 1), MPC(), owner="server", session=session)
    with pytest.raises(InvalidInput, match=r"\(10, 5, 1\)"):
        torch.ops.aten.embedding.default(cube, ids(session))


def test_no_ids(session: Session) -> None:
    out = F.embedding(ids(session, torch.zeros(2, 0, dtype=torch.int64)), table(session))
    assert out.shape == (2, 0, 5)


def test_ids_show_nowhere(session: Session) -> None:
    i = ids(session, torch.tensor([123457, 98765]))
    payload = i._state.payload
    assert isinstance(payload, Shares) and payload.known is not None
    assert "123457" not in repr(i) + repr(payload) + str(payload)
    parts = session.backend(MPC()).export(payload)
    assert all(123457 not in t.tolist() for tensors, _ in parts.values() for t in tensors.values())
