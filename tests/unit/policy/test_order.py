"""The order of techniques never matters, in what is accepted and in what is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from privtensors.backends.clear.technique import Clear
from privtensors.backends.mpc.technique import MPC
from privtensors.errors import PrivTensorsError
from privtensors.policy import Stage, Technique, execute
from privtensors.policy.execution import Bound, _run_phase
from privtensors.policy.facts import Bounded, Noised
from privtensors.policy.forms import Plaintext, Share
from privtensors.policy.phases import Phase
from privtensors.policy.state import Establishes, Has, Lacks, Opens, Sees, State, Transition, initial
from tests.unit.policy import toys

TRAIN: list[Technique] = [toys.Poisson(), toys.Clip(), toys.Sum(), toys.SecureSum(), toys.Noise()]
INFER: list[Technique] = [MPC(), Clear(), toys.Scramble(), toys.Locked(), toys.Curve(), toys.Telemetry()]


def outcome(stage: Stage, techniques: list[Technique]) -> object:
    try:
        return execute(stage, techniques, "client")
    except PrivTensorsError as error:
        return str(error)


@given(st.data())
def test_listing_order_never_matters(data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from([Stage.TRAIN, Stage.INFER]))
    chosen = data.draw(st.lists(st.sampled_from(TRAIN if stage is Stage.TRAIN else INFER), unique=True, min_size=1))
    assert outcome(stage, chosen) == outcome(stage, data.draw(st.permutations(chosen)))


@given(st.data())
def test_the_engine_itself_does_not_depend_on_order(data: st.DataObject) -> None:
    """Without the sorting that ``execute`` does first: steps of one phase in any order give one state."""
    techniques = [toys.Clip(), toys.Noise(), data.draw(st.sampled_from([toys.Sum(), toys.SecureSum()]))]
    outcome_ = execute(Stage.TRAIN, techniques, "client")
    steps: list[Bound] = [(t, s) for t in techniques for s in t.transitions(outcome_.scene(t))]
    shuffled = data.draw(st.permutations(steps))

    def run(order: list[Bound]) -> State:
        state = initial([("training examples", "client")], frozenset())
        for phase in Phase:
            state = _run_phase(Stage.TRAIN, phase, state, [b for b in order if b[1].phase is phase])
        return state

    assert run(steps) == run(shuffled)


@given(st.permutations(range(5)))
def test_within_a_phase_negative_needs_and_reveals_look_at_its_start(order: list[int]) -> None:
    noised = Noised("x", 1.0, 1e-5, "client", "zero-out", "server")
    after_bound = Has(Bounded, "y")
    steps = [
        Transition("bound", Phase.REVEAL, (), (Establishes(Bounded("y", 1.0, "client")),)),
        Transition("noise", Phase.REVEAL, (), (Establishes(noised),)),
        Transition("where nothing is noised", Phase.REVEAL, (after_bound, Lacks(Noised, "x")), (Establishes(Bounded("z", 1.0, "client")),)),
        Transition("open", Phase.REVEAL, (after_bound,), (Opens("x", "client"),)),
        Transition("share", Phase.REVEAL, (after_bound,), (Sees("x", "server", Share("s", 0)),)),
    ]
    state = _run_phase(Stage.TRAIN, Phase.REVEAL, State(), [(toys.Telemetry(), steps[n]) for n in order])
    assert state.view("client") == {"x": frozenset({Plaintext()})}
    assert state.view("server") == {"x": frozenset({Share("s", 0)})}
    assert state.facts == {Bounded("y", 1.0, "client"), Bounded("z", 1.0, "client"), noised}
