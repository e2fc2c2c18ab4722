"""wrap: what it refuses, what it folds, what it leaves alone."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from privtensors.backends.mpc.technique import MPC
from privtensors.core import SafeTensor, Session
from privtensors.errors import InvalidInput, OutOfRange, PlaintextLeak, PolicyError, UnknownFamily
from privtensors.hf import wrap
from privtensors.hf.families import family_of, known_families
from privtensors.hf.prepare import fold_batch_norms
from privtensors.policy import Policy
from tests.unit.hf.tiny import TEXT, VISION, build, inputs_for, pixel_inputs, text_inputs

MPC_POLICY = Policy(infer=["mpc"])


def test_all_families_of_the_design_are_known() -> None:
    assert known_families() == ("bert", "distilbert", "gpt2", "llama", "mobilenet_v2", "resnet", "roberta", "vit")
    assert all(family_of(name).model_type == name for name in known_families())


def test_importing_hf_does_not_import_transformers() -> None:
    code = "import sys, privtensors.hf; print('transformers' in sys.modules, 'rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


@pytest.mark.parametrize("model_type", ["t5", "base", "", "../errors", "os"])
def test_unknown_family(session: Session, model_type: str) -> None:
    model = build("bert")
    model.config.model_type = model_type
    with pytest.raises(UnknownFamily, match="bert, distilbert" if model_type else "Hugging Face") as caught:
        wrap(model, MPC_POLICY, session=session)
    assert "bert" in str(caught.value)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None, "some/path"], ids=["module", "none", "path"])
def test_not_a_hugging_face_model(session: Session, model: Any) -> None:
    with pytest.raises(UnknownFamily, match="protect"):
        wrap(model, MPC_POLICY, session=session)


def test_a_model_without_the_client_s_module(session: Session) -> None:
    model = build("bert")
    model.bert.embedding_block = model.bert.embeddings
    del model.bert.embeddings
    with pytest.raises(UnknownFamily, match=r"bert\.embeddings"):
        wrap(model, MPC_POLICY, session=session)


@pytest.mark.parametrize("policy", [None, "mpc", MPC()])
def test_not_a_policy(session: Session, policy: Any) -> None:
    with pytest.raises(PolicyError, match="Policy"):
        wrap(build("bert"), policy, session=session)


def test_a_policy_without_inference(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(infer=["mpc"])
    object.__setattr__(policy, "infer", ())  # no technique of this release has another stage
    with pytest.raises(PolicyError, match="no infer stage"):
        wrap(build("bert"), policy, session=session)


def test_wrapping_twice(session: Session) -> None:
    private = wrap(build("bert"), MPC_POLICY, session=session)
    with pytest.raises(InvalidInput, match="wrapped already"):
        wrap(private, MPC_POLICY, session=session)
    with pytest.raises(InvalidInput, match="wrapped already"):
        wrap(private.model, MPC_POLICY, session=session)


def test_an_unknown_persistent_buffer_is_refused(session: Session) -> None:
    model = build("bert")
    model.bert.pooler.register_buffer("calibration", torch.ones(3))
    with pytest.raises(InvalidInput, match=r"calibration.*") as caught:
        wrap(model, MPC_POLICY, session=session)
    assert "bert.pooler" in str(caught.value)
    model = build("bert")
    model.bert.pooler.register_buffer("constant", torch.ones(3), persistent=False)
    wrap(model, MPC_POLICY, session=session)


def test_a_loose_tensor_is_refused(session: Session) -> None:
    model = build("bert")
    model.bert.pooler.secret = torch.ones(3)
    with pytest.raises(InvalidInput, match="neither a parameter nor a buffer"):
        wrap(model, MPC_POLICY, session=session)


@pytest.mark.parametrize(("value", "error"), [(float("nan"), InvalidInput), (1e9, OutOfRange)])
def test_a_weight_that_cannot_be_shared_is_named(session: Session, value: float, error: type[Exception]) -> None:
    model = build("bert")
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] = value
    with pytest.raises(error, match=r"bert\.pooler\.dense\.weight"):
        wrap(model, MPC_POLICY, session=session)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet"])
def test_batch_norms_go_into_their_convolutions(name: str, session: Session) -> None:
    model = build(name)
    private = wrap(model, Policy(infer=["clear"]), session=session)
    norms = [m for m in private.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.weight is None and norm.bias is None
        assert norm.running_mean is not None and norm.running_var is not None and not norm.running_mean.any()
        assert torch.equal((norm.running_var + norm.eps).rsqrt(), torch.ones_like(norm.running_var))
    with session.meter.scope() as scope:
        private(**pixel_inputs())
    assert scope.spent.ops["convolution"] and not scope.spent.ops["mul"]


def test_a_batch_norm_on_its_own_keeps_factor_and_shift() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    norm: Any = net[1]
    with torch.no_grad():
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            t.uniform_(0.5, 2.0)
    x = torch.randn(8, 4)
    want, mean = net(x), norm.running_mean.clone()
    folded = copy.deepcopy(net)
    fold_batch_norms(folded, family_of("resnet"))
    torch.testing.assert_close(folded(x), want)
    assert torch.equal(norm.running_mean, mean)
    with pytest.raises(InvalidInput, match="statistics"):
        fold_batch_norms(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), family_of("resnet"))


def test_statistics_of_a_server_are_nowhere_in_the_copy(session: Session) -> None:
    private = wrap(build("resnet"), MPC_POLICY, session=session).model
    plain = {k: v for k, v in private.state_dict().items() if not isinstance(v, SafeTensor)}
    assert all(bool((v == v.flatten()[0]).all()) for v in plain.values()), list(plain)


def test_nothing_takes_the_private_model_out(session: Session, tmp_path: Path) -> None:
    private = wrap(build("bert"), MPC_POLICY, session=session)
    for way in (
        lambda: copy.deepcopy(private.model),
        lambda: pickle.dumps(private.model),
        lambda: torch.save(private.model, tmp_path / "model.pt"),
        lambda: torch.save(private.model.state_dict(), tmp_path / "state.pt"),
        lambda: private.model.save_pretrained(tmp_path / "stock"),
    ):
        with pytest.raises(PlaintextLeak):
            way()
    assert "0." not in repr(private) and "tensor" not in repr(private)


def test_training_mode_is_refused(session: Session) -> None:
    private = wrap(build("bert"), MPC_POLICY, session=session)
    private.model.train()
    with pytest.raises(InvalidInput, match="evaluation mode"):
        private(**text_inputs("bert"))
    private.model.eval()
    private(**text_inputs("bert"))


def test_progress_bar(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    wrap(build("bert"), MPC_POLICY, session=session)
    assert capsys.readouterr().err == ""
    wrap(build("bert"), MPC_POLICY, session=session, progress=True)
    assert "protecting weights" in capsys.readouterr().err


def test_weights_are_opened_under_their_masks_once(session: Session) -> None:
    """Preparing at wrap leaves only activations to be opened by a request: its first run sends as much as its second."""
    private = wrap(build("bert"), MPC_POLICY, session=session)
    spent = []
    for _ in range(2):
        with session.meter.scope() as scope:
            private(**text_inputs("bert"))
        spent.append((scope.spent.rounds, scope.spent.bytes_sent))
    assert spent[0] == spent[1]


@pytest.mark.parametrize("name", [*TEXT, *VISION])
def test_explain_says_what_the_client_runs(name: str, session: Session) -> None:
    private = wrap(build(name), MPC_POLICY, session=session)
    text = " ".join(str(private.explain(collude={"server", "dealer"})).split())
    if name in TEXT:
        assert all(front in text for front in private._fronts) and private._fronts
    else:
        assert "The client shares the pixels" in text
    assert "attention mask" in text and "SIMULATED" in text


def test_receiver_of_the_policy_gets_the_outputs() -> None:
    from privtensors.core.recorder import MemoryRecorder

    recorder = MemoryRecorder()
    private = wrap(build("gpt2"), Policy(infer=["mpc"], receiver="server"), session=Session(recorder=recorder))
    private(**text_inputs("gpt2"))
    (row,) = recorder.entries
    assert row.receiver == "server" and row.label == "logits" and row.details == (("logits", "float32[2, 7, 100]"),)
    with pytest.raises(PolicyError, match="next token"):
        private.generate(**text_inputs("gpt2"))


def test_one_row_for_several_outputs(session: Session) -> None:
    wrap(build("bert-base"), MPC_POLICY, session=session)(**inputs_for("bert-base"))
    (row,) = session.recorder.entries  # type: ignore[attr-defined]
    assert dict(row.details) == {"last_hidden_state": "float32[2, 7, 32]", "pooler_output": "float32[2, 32]"}


def test_a_recorder_that_fails_stops_the_answer() -> None:
    class Broken:
        def record(self, disclosure: object) -> None:
            raise OSError("disk full")

    private = wrap(build("bert"), MPC_POLICY, session=Session(recorder=Broken()))
    with pytest.raises(OSError, match="disk full"):
        private(**text_inputs("bert"))
