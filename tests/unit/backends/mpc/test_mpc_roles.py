"""One code path: every row of the op table gives the same words, rounds and bytes in one process and in three roles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from privtensors.backends.mpc.backend import MPCBackend
from privtensors.backends.mpc.correlations import PartyCorrelations
from privtensors.backends.mpc.program import DealerState, TraceChannel, Tracer
from privtensors.backends.mpc.technique import MPC
from privtensors.core.meter import Meter
from privtensors.core.safetensor import SafeTensor
from privtensors.errors import CorrelationError, FrameError, InvalidInput, ParameterError, ProtocolError, UnsupportedOp
from privtensors.testing.backend_suite import TRIALS
from privtensors.testing.trial import Trial, trial_id
from tests.unit.backends.mpc.harness import seed
from tests.unit.backends.mpc.roles import Corrections, Role, apart, same_as_one_process, seeds, together, trace


def flat(value: Any) -> list[SafeTensor]:
    """The protected results of an op."""
    if isinstance(value, SafeTensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


def job_of(trial: Trial) -> Any:
    """Protect the sample's operands, the client's and the server's in turn; run it; reveal the results to the client."""

    def job(role: Role) -> list[Tensor]:
        owners = ["client", "server"]

        def protected(x: Tensor) -> SafeTensor:
            owners.append(owners.pop(0))
            return role.protect(x, owners[-1])

        args = []
        for i, a in enumerate(trial.sample.args):
            if i in trial.mix:
                a = [protected(b) for b in a] if isinstance(a, list) else protected(a)
            args.append(a)
        return [role.reveal(t, "client") for t in flat(trial.sample.overload(*args, **dict(trial.sample.kwargs)))]

    return job


@pytest.mark.parametrize("trial", TRIALS, ids=trial_id)
def test_three_roles_compute_what_one_process_does(trial: Trial) -> None:
    job = job_of(trial)
    try:
        expected, meter = together(job)
    except (UnsupportedOp, InvalidInput) as error:
        with pytest.raises(type(error)):
            trace(job)
        return
    same_as_one_process(expected, meter, apart(job))


def product(role: Role) -> Tensor:
    x, y = role.protect(torch.arange(6.0).view(2, 3), "client"), role.protect(torch.ones(3, 4), "server")
    return role.reveal(torch.mm(x, y).relu(), "client")


def wider(role: Role) -> Tensor:
    x, y = role.protect(torch.arange(6.0).view(2, 3), "client"), role.protect(torch.ones(3, 5), "server")
    return role.reveal(torch.mm(x, y).relu(), "client")


def test_a_program_tells_what_it_was_dealt_for() -> None:
    one, same, other = (trace(job)[0] for job in (product, product, wider))
    assert one.digest == same.digest != other.digest


def test_the_server_may_be_the_receiver() -> None:
    def job(role: Role) -> Tensor:
        return role.reveal(role.protect(torch.tensor([1.0, -2.0]), "client") * 2, "server")

    outcome = apart(job)
    assert outcome.results["server"].tolist() == [2.0, -4.0] and outcome.results["client"].tolist() == [0.0, 0.0]


def test_parties_that_run_different_programs_do_not_go_on() -> None:
    def sigmoid(role: Role) -> Tensor:
        return role.reveal(role.protect(torch.ones(3), "client").sigmoid(), "client")

    def tanh(role: Role) -> Tensor:
        return role.reveal(role.protect(torch.ones(3), "client").tanh() * 2, "client")

    with pytest.raises((FrameError, AssertionError, CorrelationError)):
        apart(sigmoid, jobs=(sigmoid, tanh))


def party(number: int) -> tuple[PartyCorrelations, MPCBackend]:
    correlations = PartyCorrelations(Meter(), number, seeds()[1])
    return correlations, MPCBackend(MPC(), correlations.meter, channel=_Alone(number), dealer=correlations)


class _Alone(TraceChannel):
    def __init__(self, number: int) -> None:
        self.parties = (number,)


def test_a_party_gives_its_own_values_and_the_shapes_of_others() -> None:
    _, backend = party(0)
    with pytest.raises(InvalidInput, match="content of a value that 'server' holds"):
        backend.protect(torch.ones(2), owner="server")
    with pytest.raises(InvalidInput, match="without its content"):
        backend.protect(torch.empty(2, device="meta"), owner="client")
    assert not backend.simulated and backend.protect(torch.empty(2, device="meta"), owner="server").data.shape == (1, 2)


def test_one_process_has_no_other_party() -> None:
    with pytest.raises(InvalidInput, match="without its content"):
        MPCBackend(MPC(), Meter()).protect(torch.empty(2, device="meta"), owner="server")


def test_the_share_of_an_input_that_the_other_party_gets_does_not_depend_on_it() -> None:
    (_, client), (_, server) = party(0), party(1)
    x = torch.tensor([3.25, -7.0])
    mine = client.protect(x, owner="client").data
    other = server.protect(torch.empty(2, device="meta"), owner="client").data
    assert (mine + other).tolist() == [[round(3.25 * 2**18), -7 * 2**18]]


@pytest.mark.parametrize("number", [0, 1])
def test_nothing_is_drawn_outside_a_request(number: int) -> None:
    correlations, _ = party(number)
    with pytest.raises(CorrelationError):
        correlations.mask((2,))
    with pytest.raises(CorrelationError):
        correlations.share(torch.neg, shape=(2,))
    with pytest.raises(ParameterError):
        correlations.begin(seed(1), None if number else Corrections(b""))
    correlations.begin(seed(1), Corrections(b"") if number else None)
    correlations.mask((2,))
    with pytest.raises(CorrelationError):
        correlations.begin(seed(2), Corrections(b"") if number else None)
    correlations.end()
    with pytest.raises(CorrelationError):
        correlations.xor_mask((2,))


def test_corrections_that_are_left_over_or_run_out_are_errors() -> None:
    correlations, _ = party(1)
    correlations.begin(seed(1), Corrections(bytes(16)))
    correlations.share(torch.neg, shape=(1,))
    with pytest.raises(CorrelationError, match="left over"):
        correlations.end()
    correlations.begin(seed(1), Corrections(bytes(8)))
    correlations.share(torch.neg, shape=(1,))
    with pytest.raises(CorrelationError, match="no more"):
        correlations.share(torch.neg, shape=(1,))


def test_a_party_never_learns_the_value_of_a_mask() -> None:
    correlations, _ = party(1)
    correlations.begin(seed(1), Corrections(b""))
    with pytest.raises(ProtocolError, match="only the dealer"):
        correlations.mask((2,)).hidden.value()


def test_channel_and_randomness_belong_together() -> None:
    meter = Meter()
    with pytest.raises(ParameterError):
        MPCBackend(MPC(), meter, channel=_Alone(0))
    with pytest.raises(ParameterError):
        MPCBackend(MPC(), meter, dealer=Tracer(meter))


def test_seeds_of_one_request_differ() -> None:
    program = trace(product)[0]
    with pytest.raises(ParameterError):
        list(program.deal((seed(1), seed(1)), DealerState(), keep=False))
    with pytest.raises(ParameterError):
        PartyCorrelations(Meter(), 0, (seed(1), seed(1)))


def test_the_dealer_traces_inside_a_program_only() -> None:
    tracer = Tracer(Meter())
    with pytest.raises(CorrelationError):
        tracer.mask((1,))
    tracer.begin()
    with pytest.raises(CorrelationError):
        tracer.begin()


def test_masks_kept_for_a_session_are_its_own() -> None:
    """A weight opened in the set-up is used by a later program, with the masks of the session that asks."""
    meter = Meter()
    tracer = Tracer(meter)
    role = Role(MPCBackend(MPC(), meter, channel=TraceChannel(), dealer=tracer), meter)
    tracer.begin()
    weight = role.protect(torch.ones(3, 3), "server")
    role.backend.prepare(weight._state.payload)
    setup = tracer.end()
    tracer.begin()
    torch.mm(role.protect(torch.ones(2, 3), "client"), weight)
    program = tracer.end()
    states = DealerState(), DealerState()
    for state in states:
        list(setup.deal((seed(1), seed(2)), state, keep=True))
    once, again = (b"".join(program.deal((seed(3), seed(4)), states[0], keep=False)) for _ in range(2))
    assert once == again  # replaying a program changes nothing in the session
    fresh = DealerState()
    list(setup.deal((seed(5), seed(6)), fresh, keep=True))
    assert b"".join(program.deal((seed(3), seed(4)), fresh, keep=False)) != once
    with pytest.raises(CorrelationError, match="never drew"):
        list(program.deal((seed(3), seed(4)), DealerState(), keep=False))
    assert len(states[0].values) == 1
    del weight, setup, program
    assert len(states[0].values) == 0  # masks go with what they masked
