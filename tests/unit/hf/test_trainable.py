"""``wrap(model, Policy(train=[DP(...)])).fit(data)``: exact, charged, saved, and refused where it must be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import privtensors as pt
from privtensors.accounting import Account, Accounts, Ledger
from privtensors.backends.dp import DP
from privtensors.core import Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import (
    AccountingError,
    BudgetExceeded,
    CrossExample,
    InvalidInput,
    LedgerError,
    ParameterError,
    PolicyError,
    UnknownFamily,
)  # fmt: skip
from privtensors.hf.losses import task_loss
from privtensors.hf.trainable import TrainableModel
from tests.unit.hf.rows import SIZE, reviews
from tests.unit.hf.tiny import build, pixel_inputs, text_inputs

ACCOUNT = Account("reviews")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Ledger(tmp_path / "ledger.sqlite") as ledger, Session(recorder=ledger) as made:
        yield made


def wrapped(model: Any, session: Session, infer: tuple[str, ...] = (), **terms: Any) -> TrainableModel:
    noise = {} if "epsilon" in terms else {"noise_multiplier": 1.0}
    promise = DP(**({"dataset": "reviews"} | noise | terms))
    private = pt.wrap(model, pt.Policy(train=[promise], infer=list(infer)), session=session)
    assert isinstance(private, TrainableModel)
    return private


def steps_on(session: Session, account: Account = ACCOUNT) -> int:
    assert isinstance(session.recorder, Ledger)
    return sum(count for _, count in Accounts(session.recorder).statement(account).events.counts)


def test_a_fit_trains_in_place_charges_the_ledger_and_reports(session: Session) -> None:
    model = build("bert")
    before = {name: p.clone() for name, p in model.named_parameters()}
    private = wrapped(model, session, epsilon=3.0)
    result = private.fit(reviews(), steps=4, batch_size=6, learning_rate=0.01, microbatch=4, eval_dataset=reviews(8), evaluate_every=2)
    assert private.plain is model and not model.training and private.runs == (result,)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert "classifier.weight" in moved and any("query" in name for name in moved)
    assert steps_on(session) == result.steps == result.planned == 4
    assert 2.9 < result.epsilon <= 3.0 and result.epsilon == result.target and result.rate == 0.25 and result.batch_size == 6
    assert result.delta == 1e-5 and result.rule == "unlimited" and result.units == SIZE and result.reservation is not None
    assert result.ledger_head == str(session.recorder.head()) and result.engines and result.seconds > 0  # type: ignore[attr-defined]
    assert [e.step for e in result.evaluations] == [2, 4] and set(result.evaluations[0].figures) == {"loss", "accuracy"}
    assert "ε" in str(result) and json.loads(json.dumps(result.to_dict()))["epsilon"] == result.epsilon
    with torch.no_grad():
        assert torch.equal(private(**text_inputs("bert")).logits, model(**text_inputs("bert")).logits)



@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
def test_lora_is_trained_saved_and_loaded_again(session: Session, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(build("bert"), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2))
    private = wrapped(model, session)
    assert all("lora" in name or "classifier" in name for name, _ in private.named_parameters())
    private.fit(reviews(), steps=3, batch_size=8, learning_rate=0.05)
    private.save_pretrained(tmp_path / "out")
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "policy.toml", "privacy_card.json"} <= files
    again = PeftModel.from_pretrained(build("bert"), str(tmp_path / "out")).eval()
    with torch.no_grad():
        assert torch.allclose(again(**text_inputs("bert")).logits, model.eval()(**text_inputs("bert")).logits, atol=1e-6)
    card = json.loads((tmp_path / "out" / "privacy_card.json").read_text())
    [run] = card["training"]
    assert run["steps"] == 3 and run["epsilon"] == private.runs[0].epsilon > 0 and card["ledger_head"] == run["ledger_head"]
    assert pt.Policy.from_toml(tmp_path / "out" / "policy.toml") == private.policy


def test_a_whole_model_is_saved_as_its_class_saves(session: Session, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = build("bert")
    private = wrapped(model, session)
    private.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    with pytest.raises(InvalidInput, match="server"):
        private.save_pretrained(tmp_path, party="server")
    with pytest.raises(InvalidInput, match="file"):
        private.save_pretrained(tmp_path / "policy.toml")


def test_the_infer_stage_computes_what_was_trained(session: Session) -> None:
    model = build("bert")
    private = wrapped(model, session, infer=("clear",))
    first = private(**text_inputs("bert")).logits
    private.fit(reviews(), steps=2, batch_size=12, learning_rate=0.05)
    second = private(**text_inputs("bert")).logits
    assert (first - second).abs().max() > 0.01
    with torch.no_grad():
        assert torch.allclose(second, model(**text_inputs("bert")).logits, atol=1e-4)
    assert type(private.model) is type(model) and private.model is not model
    assert "trained weights" in str(private.explain())


def test_generate_without_an_infer_stage_is_the_models_own(session: Session) -> None:
    model = build("gpt2")
    private = wrapped(model, session)
    ids = torch.tensor([[5, 6, 7]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 3}
    assert torch.equal(private.generate(ids, **options), model.generate(ids, do_sample=False, **options))  # type: ignore[arg-type]
    assert "trained weights" in str(private.explain())


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_ctrl_c_settles_what_ran_and_the_model_is_usable(session: Session, error: type[BaseException]) -> None:
    model = build("bert")
    private = wrapped(model, session)
    seen = [0]

    class Breaking(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            seen[0] += 1
            if seen[0] == 3:
                raise error
            return super().step(closure)

    with pytest.raises(error):
        private.fit(reviews(), steps=10, batch_size=6, optimizer=Breaking)
    [run] = private.runs
    assert steps_on(session) == run.steps == 3 and run.planned == 10 and run.epsilon < run.target
    assert Accounts(session.recorder).statement(ACCOUNT).open == ()  # type: ignore[arg-type]
    assert all(p.grad is None for p in model.parameters()) and not model.training
    assert private.fit(reviews(), steps=1, batch_size=6).steps == 1


def test_a_budget_holds_over_runs(session: Session) -> None:
    Accounts(session.recorder).set_budget(ACCOUNT, 3.0, 1e-5)  # type: ignore[arg-type]
    private = wrapped(build("bert"), session, epsilon=1.0)
    assert private.fit(reviews(), steps=2, batch_size=6).rule == "filter"
    big = wrapped(build("bert"), session, epsilon=8.0)
    before = [p.clone() for p in big.plain.parameters()]
    with pytest.raises(BudgetExceeded, match="is left"):
        big.fit(reviews(), steps=50, batch_size=6)
    assert all(torch.equal(a, b) for a, b in zip(big.plain.parameters(), before, strict=True)) and big.runs == ()
    noisy = big.fit(reviews(), steps=5, batch_size=6, on_budget="noise")
    assert noisy.steps == 5 and noisy.epsilon < 3.0
    with pytest.raises(PolicyError, match="has a budget"):
        wrapped(build("bert"), session, epsilon=math.inf).fit(reviews(), steps=1)




def test_a_model_of_no_known_family_trains(session: Session) -> None:
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=100, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    assert wrapped(transformers.AlbertForSequenceClassification(config), session).fit(reviews(), steps=1, batch_size=12).steps == 1
    with pytest.raises(UnknownFamily):
        wrapped(transformers.AlbertForSequenceClassification(config), session, infer=("clear",))


@pytest.mark.parametrize(("name", "width"), [("gpt2", 7), ("bert-mlm", 7), ("bert-qa", 0), ("vit", 0), ("llama-tied", 7), ("roberta", 0)])
def test_task_losses_are_means_over_examples_and_agree_with_the_stock_ones(name: str, width: int) -> None:
    model = build(name)
    batch: dict[str, Tensor] = pixel_inputs() if name == "vit" else text_inputs(name)
    if name == "bert-qa":
        batch |= {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([2, 9])}
    else:
        batch |= {"labels": torch.randint(0, 2, (2, width)) if width else torch.tensor([0, 1])}
    loss = task_loss(model)
    assert loss is not None
    rows = [{key: x[i : i + 1] for key, x in batch.items()} for i in range(2)]
    with torch.no_grad():
        alone = [float(loss(row)) for row in rows]
        assert float(loss(batch)) == pytest.approx(sum(alone) / 2, rel=1e-5)
        stock = [float(model(**row).loss) for row in rows]
        if name != "bert-qa":  # there the stock loss of one example whose end lies outside is not finite
            assert alone == pytest.approx(stock, rel=1e-5)
        if width:  # the stock loss of a batch weighs examples by their tokens
            batch["labels"][1, 3:] = -100
            rows = [{key: x[i : i + 1] for key, x in batch.items()} for i in range(2)]
            assert float(loss(batch)) == pytest.approx(sum(float(loss(row)) for row in rows) / 2, rel=1e-5)
            assert abs(float(model(**batch).loss) - float(loss(batch))) > 1e-4


def test_float_labels() -> None:
    model = build("bert")
    loss = task_loss(model)
    assert loss is not None
    inputs = text_inputs("bert")
    with torch.no_grad():
        wanted = F.binary_cross_entropy_with_logits(model(**inputs).logits, torch.ones(2, 2))
        assert float(loss(inputs | {"labels": torch.ones(2, 2)})) == pytest.approx(float(wanted))
        model.config.num_labels = 1
        model.classifier = nn.Linear(32, 1)
        wanted = F.mse_loss(model(**inputs).logits.flatten(), torch.tensor([0.5, 2.0]))
        assert float(loss(inputs | {"labels": torch.tensor([0.5, 2.0])})) == pytest.approx(float(wanted))
    with pytest.raises(InvalidInput, match="no labels"):
        loss(inputs)
    assert task_loss(build("bert-base")) is None



def test_refusals_leave_no_row(session: Session) -> None:
    def refused(error: type[Exception], match: str, model: Any = None, data: Any = None, **options: Any) -> None:
        with pytest.raises(error, match=match):
            wrapped(build("bert") if model is None else model, session).fit(reviews() if data is None else data, **options)

    refused(CrossExample, "BatchNorm2d", build("resnet"), [{"pixel_values": torch.zeros(3, 32, 32), "labels": 0}] * 4)
    refused(AccountingError, "Poisson", data=torch.utils.data.DataLoader(reviews(), batch_size=4, shuffle=True))  # type: ignore[arg-type]
    refused(ParameterError, "batch_size", batch_size=100)
    refused(ParameterError, "both", epochs=1, steps=1)
    refused(ParameterError, "schedule", schedule="cosine")
    refused(ParameterError, "learning_rate", learning_rate=-1.0)
    refused(ParameterError, "precision", precision="float16")
    refused(ParameterError, "warmup", warmup=2.0)
    refused(ParameterError, "evaluate_every", evaluate_every=0)
    refused(ParameterError, "microbatch", microbatch=0)
    refused(InvalidInput, "not a mapping", data=[1, 2, 3])
    assert session.recorder.entries() == ()  # type: ignore[attr-defined]


def test_who_may_fit(session: Session) -> None:
    with pytest.raises(PolicyError, match="not DP"):
        pt.wrap(build("bert"), pt.Policy(infer=["clear"]), session=session).fit(reviews())
    with pytest.raises(LedgerError, match="MemoryRecorder"):
        wrapped(build("bert"), Session(recorder=MemoryRecorder())).fit(reviews())
    with pytest.raises(InvalidInput, match="wrapped already"):
        wrapped(wrapped(build("bert"), session), session)
    with pytest.raises(UnknownFamily):
        wrapped(nn.Linear(2, 2), session)
