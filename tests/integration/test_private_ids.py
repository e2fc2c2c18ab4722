"""Embedding tables of the server: every family answers as the plain model, and the ids stay with the client."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtensors import MPC, Policy, Session, wrap
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.core import SafeTensor
from privtensors.core.recorder import MemoryRecorder
from privtensors.deploy.descriptor import describe
from privtensors.errors import AssetRefused, AssetUnavailable, InvalidInput, OutOfRange, PolicyError
from privtensors.hf import PrivateModel
from privtensors.hf.prepare import looked_up
from privtensors.hf.wrap import assemble
from privtensors.testing.assets import SKIP_REASON, minilm_path
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.record import RecordingChannel, Tape
from tests.unit.backends.mpc.roles import Role, apart
from tests.unit.hf.tiny import CAUSAL, TEXT, VISION, build, text_inputs

POLICY = Policy(infer=[MPC(embeddings="server")])
# Tables in which the client looks rows up; positions are public, but for RoBERTa, which makes them from the ids.
PRIVATE = {
    "bert": {"word_embeddings", "token_type_embeddings"},
    "distilbert": {"word_embeddings"},
    "roberta": {"word_embeddings", "token_type_embeddings", "position_embeddings"},
    "gpt2": {"wte"},
    "llama": {"embed_tokens"},
}


def private_of(model: Any, session: Session | None = None) -> PrivateModel:
    return wrap(model, POLICY, session=session or Session(recorder=MemoryRecorder()), progress=False)


def error_of(private: PrivateModel, model: Any, inputs: dict[str, Tensor]) -> float:
    with torch.no_grad():
        plain = model(**inputs)
    output = private(**inputs)
    mask, worst = inputs["attention_mask"].bool(), 0.0
    for name, want in plain.items():
        if isinstance(want, Tensor):
            relevant = mask if want.shape[:2] == mask.shape else torch.ones(want.shape[:1], dtype=torch.bool)
            assert want.abs().max() > 0.2
            worst = max(worst, float((output[name] - want)[relevant].abs().max() / want.abs().max().clamp(min=1)))
    return worst


@pytest.mark.parametrize("name", TEXT)
def test_answers_as_the_plain_model(name: str) -> None:
    model = build(name)
    assert error_of(private_of(model), model, text_inputs(name)) < 0.02


def test_token_types_are_looked_up_too() -> None:
    model = build("bert")
    inputs = text_inputs("bert")
    inputs["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]])
    assert error_of(private_of(model), model, inputs) < 0.02


@pytest.mark.parametrize("name", CAUSAL)
def test_generate(name: str) -> None:
    model = build(name)
    inputs = text_inputs(name, left=True)
    want = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(private_of(model).generate(**inputs, max_new_tokens=4, do_sample=False), want)


@pytest.mark.parametrize("name", TEXT)
def test_every_parameter_is_the_server_s_and_the_client_saves_none(name: str, tmp_path: Path) -> None:
    private = private_of(build(name))
    for _, parameter in private.model.named_parameters(remove_duplicate=False):
        assert isinstance(parameter, SafeTensor) and parameter.owner == "server"
    private.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "policy.toml", "privacy_card.json"}
    assert "looks its token ids up in the server's tables" in str(private.explain()).replace("\n    ", " ")


@pytest.mark.parametrize("name", TEXT)
def test_which_tables_are_looked_up_privately(name: str) -> None:
    private = private_of(build(name))
    found = {full.rsplit(".", 1)[-1] for full in looked_up(private.model, private.family)}
    assert found == PRIVATE[private.family.model_type]


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "bert-mlm"])
def test_a_tied_head_and_the_table_are_one_parameter(name: str) -> None:
    private = private_of(build(name)).model
    assert private.get_output_embeddings().weight is private.get_input_embeddings().weight


@pytest.mark.parametrize("name", TEXT)
def test_no_id_reaches_a_kernel_in_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    private = private_of(build(name))
    backend: Any = private.session.backend(private.technique)
    seen: list[Tensor] = []
    embed = nn.functional.embedding

    def watched(positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(positions)
        return embed(positions, *args, **kwargs)

    monkeypatch.setattr(nn.functional, "embedding", watched)
    owners: list[str] = []
    protect = backend.protect
    monkeypatch.setattr(backend, "protect", lambda x, *, owner: (owners.append(owner), protect(x, owner=owner))[1])
    private(**text_inputs(name))
    public = [x for x in seen if not isinstance(x, SafeTensor)]
    assert len(seen) - len(public) == len(PRIVATE[private.family.model_type]) and set(owners) == {"client"}
    for x in public:  # position numbers
        assert torch.equal(x.reshape(-1), torch.arange(x.shape[-1]))


def recorded(model: Any, ids: Tensor) -> tuple[list[Any], list[Any], Any]:
    """What server and client received in one forward, and the wrapped model."""
    tape = Tape()
    with Session(recorder=MemoryRecorder()) as session:
        backend = session.backend(MPC(embeddings="server"))
        assert isinstance(backend, MPCBackend)
        backend.runtime.channel = RecordingChannel(MemoryChannel(), tape)
        private = wrap(model, POLICY, progress=False)
        before = len(tape.entries)
        private(input_ids=ids)
    received = [e for e in tape.entries[before:] if not e.sent]
    return [e for e in received if e.party == "party1"], [e for e in received if e.party == "party0"], private


def test_what_crossed_the_wire_is_what_explain_says() -> None:
    model = build("bert")
    ids = torch.randint(5, 100, (1, 11), generator=torch.Generator().manual_seed(3))
    server, client, _ = recorded(model, ids)
    again, _, _ = recorded(model, ids.flip(1))
    # Nothing about a request but its shapes decides what the server receives.
    assert [(e.shape, e.bits) for e in server] == [(e.shape, e.bits) for e in again]
    # For each table one bit string and one sign per token, and one way only.
    strings = {(11, 13): "word_embeddings", (11, 1): "token_type_embeddings"}  # 100 and 2 rows
    assert [e.shape for e in server if e.bits == 8 and e.shape in strings] == list(strings)
    assert not [e for e in client if e.bits == 8 and e.shape in strings]
    # The answers go to the client only, before anything else of that shape is opened.
    assert [e.shape for e in client[:2]] == [(11, 32), (11, 32)]
    # No id, and no embedding row in fixed point, lies in what the server got.
    rows = torch.round(model.bert.embeddings(ids).detach().double() * 2.0**18).to(torch.int64)
    words = {int(w) for e in server if e.bits == 64 for w in torch.frombuffer(bytearray(e.data), dtype=torch.int64)}
    assert not words & {int(w) for w in rows.flatten() if abs(int(w)) > 1000}
    assert not words & {int(w) for w in ids.flatten()}
    # The same ids ask differently every time.
    first, second = ([e.data for e in view if e.bits == 8] for view in (server, recorded(model, ids)[0]))
    assert all(a != b for a, b in zip(first, second, strict=True) if len(a) > 2)


def structure(model: Any) -> Any:
    """The model without content, tied parameters still tied: what client and dealer hold."""
    empty, done = copy.deepcopy(model), dict[int, nn.Parameter]()
    for module in empty.modules():
        for key, p in module._parameters.items():
            if p is not None:
                module._parameters[key] = done.setdefault(id(p), nn.Parameter(p.detach().to("meta"), requires_grad=False))
    return empty


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2-classifier"])
def test_client_server_and_dealer_apart(name: str) -> None:
    model, inputs, technique = build(name), text_inputs(name), POLICY.infer[0]
    if name.startswith("gpt2"):
        inputs["use_cache"] = False  # type: ignore[assignment]

    def job(role: Role) -> Tensor:
        session = Session(recorder=MemoryRecorder())
        session.use(technique, role.backend)
        client, server = (role.backend.holds(owner) for owner in ("client", "server"))
        with torch.no_grad():
            mine = model if server else structure(model)
            private = assemble(mine, POLICY, technique, session, progress=False, client_here=client)
            public = describe(inputs, private.family, cache=0, past=0)
            given = inputs if client else public.arguments(private.config, private.family, None)
            logits: Tensor = private.model(**given).logits
            return logits

    results = apart(job).results
    with torch.no_grad():
        want = model(**inputs).logits
    assert (results["client"] - want).abs().max() < 0.02 * max(1.0, float(want.abs().max()))
    assert not results["server"].any()


def test_explicit_positions_are_refused_where_the_server_would_have_to_know_them() -> None:
    inputs = text_inputs("bert") | {"position_ids": torch.arange(7).expand(2, 7)}
    with pytest.raises(InvalidInput, match="positions that are public"):
        private_of(build("bert"))(**inputs)
    model = build("roberta")
    inputs = text_inputs("roberta") | {"position_ids": torch.arange(3, 10).expand(2, 7).contiguous()}
    assert error_of(private_of(model), model, inputs) < 0.02


@pytest.mark.parametrize("name", VISION)
def test_a_model_of_pixels_has_no_tables(name: str) -> None:
    with pytest.raises(PolicyError, match="pixels"):
        private_of(build(name))


def test_ids_outside_the_vocabulary_are_refused_before_anything_is_sent() -> None:
    private = private_of(build("bert"))
    before = private.session.meter.rounds
    with pytest.raises(OutOfRange, match="the vocabulary"):
        private(input_ids=torch.tensor([[7, 100]]))
    assert private.session.meter.rounds == before


@pytest.fixture(scope="module")
def minilm() -> Path:
    try:
        return minilm_path()
    except AssetRefused:
        raise
    except AssetUnavailable as error:
        pytest.skip(f"{SKIP_REASON}: {error}")


def test_minilm(minilm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    private = private_of(model)
    texts = [
        "The parcel came two days late and the box was torn, but the lamp inside works.",
        "ok then",
        "Please send the signed contract back to our Zurich office before Friday, or the discount of 12.5% lapses.",
    ]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        want = model(**inputs)
    with private.session.meter.scope() as scope:
        output = private(**inputs)
    mask = inputs["attention_mask"].bool()
    assert (output.last_hidden_state - want.last_hidden_state)[mask].abs().max() <= 0.02
    assert (output.last_hidden_state - want.last_hidden_state)[mask].abs().mean() <= 0.0015
    assert (output.pooler_output - want.pooler_output).abs().max() <= 0.02
    assert scope.spent.ops["embedding"] == 3
