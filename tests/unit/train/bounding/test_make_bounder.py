"""Which engine is chosen, what it says of itself, and what every engine has around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privtensors.errors import BoundingError, CrossExample, InvalidInput, ParameterError, UnboundedParameter
from privtensors.testing.dp_models import families
from privtensors.testing.dp_oracle import difference, oracle
from privtensors.train.bounding import GradientBounder, make_bounder
from privtensors.train.roles import Batch, Bounder

ENGINES = ["auto", "bookkeeping", "loop", "opacus"]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def batch(examples: int = 6) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    return {"x": torch.randn(examples, 4, generator=random), "y": torch.randint(0, 2, (examples,), generator=random)}


def loss_of(model: nn.Module) -> Any:
    return lambda b: F.cross_entropy(model(b["x"]), b["y"])


# Choice


def test_it_fills_the_role() -> None:
    model = small()
    bounder: Bounder = make_bounder(model, 1.0)  # checked by mypy
    assert dict(bounder.parameters) == dict(model.named_parameters())


def test_methods_by_layer() -> None:
    t = families()["LoRA on BERT"].trial()
    bounder = make_bounder(t.model, 1.0)
    assert {row.method for row in bounder.describe()} == {"by length"}
    bounder.accumulate(t.batch, t.loss, t.examples)
    rows = {row.module.split(".")[-1] + ("" if "lora" not in row.module else " lora"): row for row in bounder.describe()}
    assert {rows[name].method for name in rows if "lora" in name} == {"instantiate"}  # 32 x 4 against 12 x (32 + 4) numbers
    assert sum(row.parameters for row in bounder.describe()) == sum(p.numel() for p in bounder.parameters.values())
    assert all(row.reason for row in rows.values())


def test_methods_of_a_full_fine_tune() -> None:
    t = families()["BERT"].trial()
    bounder = make_bounder(t.model, 1.0)
    bounder.accumulate(t.batch, t.loss, t.examples)
    methods = {row.module: row.method for row in bounder.describe()}
    assert methods["bert.embeddings.word_embeddings"] == "gram"
    assert methods["bert.encoder.layer.0.intermediate.dense"] == "gram"
    assert methods["bert.embeddings.LayerNorm"] == "instantiate"
    assert methods["classifier"] == "outer"
    units = families()["Llama, tied"].trial()
    assert "replay" in {row.method for row in make_bounder(units.model, 1.0).describe()}


@pytest.mark.parametrize("engine", ["loop", "opacus"])
def test_engines_that_treat_every_layer_alike(engine: Any) -> None:
    (row,) = make_bounder(small(), 1.0, engine=engine).describe()
    assert row.module == "" and row.parameters == 58 and row.reason


def test_why_the_loop_was_taken() -> None:
    t = families()["DeBERTa-v2"].trial()
    bounder = make_bounder(t.model, 1.0)
    bounder.accumulate(t.batch, t.loss, t.examples)
    (row,) = bounder.describe()
    assert bounder.engine == "loop" and "query_proj" in row.reason and "(1, 16, 32)" in row.reason


def test_unknown_engine() -> None:
    with pytest.raises(ParameterError, match="bookkeeping"):
        make_bounder(small(), 1.0, engine="fast")  # type: ignore[arg-type]


def test_going_over_to_the_loop_keeps_the_sum() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            raw = x @ self.first.weight if float(x[0, 0]) == 7 else self.first(x)
            out: Tensor = self.head(raw)
            return out

    torch.manual_seed(0)
    model = Sometimes()
    one, two = batch(), batch()
    two["x"][:, 0] = 7
    expected = [dict.fromkeys(()), {}]
    for index, part in enumerate((one, two)):
        loop = make_bounder(model, 0.3, engine="loop")
        loop.accumulate(part, loss_of(model), 6)
        expected[index] = loop.take()
    bounder = make_bounder(model, 0.3)
    bounder.accumulate(one, loss_of(model), 6)
    assert bounder.engine == "bookkeeping"
    bounder.accumulate(two, loss_of(model), 6)
    assert bounder.engine == "loop"
    for name, value in bounder.take().items():
        torch.testing.assert_close(value, expected[0][name] + expected[1][name])


# The step


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_without_examples_is_zero(engine: Any) -> None:
    model = small()
    bounder = make_bounder(model, 1.0, engine=engine)
    for _ in range(2):
        sums = bounder.take()
        assert {n: v.shape for n, v in sums.items()} == {n: p.shape for n, p in model.named_parameters()}
        assert all(v.dtype == torch.float32 and not v.requires_grad and not bool(v.any()) for v in sums.values())
    bounder.accumulate(batch(0), loss_of(model), 0)
    assert not any(bool(v.any()) for v in bounder.take().values())


@pytest.mark.parametrize("engine", ENGINES)
def test_take_starts_anew(engine: Any) -> None:
    model = small()
    bounder = make_bounder(model, 0.1, engine=engine)
    sums = []
    for _ in range(2):
        bounder.accumulate(batch(), loss_of(model), 6)
        sums.append(bounder.take())
    for name, value in sums[0].items():
        torch.testing.assert_close(sums[1][name], value)
        assert sums[1][name].data_ptr() != value.data_ptr()
    assert not any(bool(v.any()) for v in bounder.take().values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", [1e-3, 0.5, 1e3])
def test_the_norm_of_the_sum_is_bounded(engine: Any, norm: float) -> None:
    model = small()
    bounder = make_bounder(model, norm, engine=engine)
    bounder.accumulate(batch(), loss_of(model), 6)
    total = float(torch.stack([v.norm() for v in bounder.take().values()]).norm())
    assert 0 < total <= 6 * norm * (1 + 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_clipping_norm_may_not_change_within_a_step(engine: Any) -> None:
    model = small()
    bounder = make_bounder(model, 1.0, engine=engine)
    bounder.accumulate(batch(), loss_of(model), 6)
    bounder.clipping_norm = 2.0
    with pytest.raises(ParameterError, match=r"1\.0.*2\.0"):
        bounder.accumulate(batch(), loss_of(model), 6)
    with pytest.raises(ParameterError, match="take"):
        bounder.take()
    bounder.clipping_norm = 1
    assert any(bool(v.any()) for v in bounder.take().values())
    bounder.clipping_norm = 2.0
    bounder.accumulate(batch(), loss_of(model), 6)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_clipping_norm_is_a_positive_number(norm: Any) -> None:
    with pytest.raises(ParameterError):
        make_bounder(small(), norm)
    bounder = make_bounder(small(), 1.0)
    bounder.clipping_norm = norm
    with pytest.raises(ParameterError):
        bounder.take()


@pytest.mark.parametrize(
    ("bad", "examples"),
    [({"x": torch.zeros(5, 4)}, 6), ({"temperature": torch.tensor(1.0)}, 6), ({"x": [1, 2]}, 6), ({}, 5), ({}, -1), ({}, True), ({}, 6.0)],
)
def test_a_batch_whose_tensors_do_not_run_over_the_examples(bad: dict[str, Any], examples: Any) -> None:
    model = small()
    with pytest.raises(InvalidInput):
        make_bounder(model, 1.0).accumulate({**batch(), **bad}, loss_of(model), examples)


def test_constants_are_passed_on() -> None:
    model = small()
    part: Batch = {**batch(), "scale": 2.0, "name": "a", "nothing": None}
    for engine in ("bookkeeping", "loop"):
        bounder = make_bounder(model, 1e9, engine=engine)  # type: ignore[arg-type]
        bounder.accumulate(part, lambda b: loss_of(model)(b) * b["scale"], 6)
        assert any(bool(v.any()) for v in bounder.take().values())


def test_an_interrupt_in_the_middle_of_a_sum_loses_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    bounder = make_bounder(model, 1.0, engine="bookkeeping")
    bounder.accumulate(batch(), loss_of(model), 6)
    from privtensors.train.bounding import weighted

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weighted, "_add_pair", stop)
        with pytest.raises(KeyboardInterrupt):
            bounder.accumulate(batch(), loss_of(model), 6)
    with pytest.raises(BoundingError, match="Repeat"):
        bounder.take()
    assert not any(bool(v.any()) for v in bounder.take().values())


def test_a_closed_bounder() -> None:
    model = small()
    bounder = make_bounder(model, 1.0)
    bounder.close()
    with pytest.raises(BoundingError, match="closed"):
        bounder.accumulate(batch(), loss_of(model), 6)


# Models that are refused


def test_nothing_trainable() -> None:
    with pytest.raises(BoundingError, match="frozen"):
        make_bounder(small().requires_grad_(False), 1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_changes_after_the_bounder_was_made(engine: Any) -> None:
    for change in (
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: m.append(nn.Linear(2, 2)),
        lambda m: setattr(m[2], "weight", nn.Parameter(torch.zeros(2, 8))),
    ):
        model = small()
        bounder = make_bounder(model, 1.0, engine=engine)
        change(model)
        with pytest.raises(UnboundedParameter, match="after the bounder was made"):
            bounder.accumulate(batch(), loss_of(model), 6)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_that_hide_the_model(wrap: Any) -> None:
    model = wrap(small())
    what = type(model).__name__
    assert what in ("DataParallel", "OptimizedModule")
    with pytest.raises(BoundingError, match=what):
        make_bounder(model, 1.0)


def test_a_gradient_that_is_used_as_it_accumulates() -> None:
    model = small()
    handle = model[0].weight.register_post_accumulate_grad_hook(lambda p: None)  # type: ignore[index]
    with pytest.raises(BoundingError, match=r"0\.weight"):
        make_bounder(model, 1.0)
    handle.remove()
    make_bounder(model, 1.0)


@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "loop"])
@pytest.mark.parametrize(
    ("make", "fix"),
    [
        (lambda: nn.BatchNorm1d(4), "GroupNorm"),
        (lambda: nn.SyncBatchNorm(4), "GroupNorm"),
        (lambda: nn.BatchNorm1d(4, affine=False), "GroupNorm"),
        (lambda: nn.InstanceNorm1d(4, track_running_stats=True), "track_running_stats"),
    ],
)
def test_statistics_over_the_batch(engine: Any, make: Any, fix: str) -> None:
    layer = make()
    model = nn.Sequential(layer, nn.Linear(4, 2)).train()
    bounder = make_bounder(model, 1.0, engine=engine)
    with pytest.raises(CrossExample, match=fix):
        bounder.accumulate(batch(), loss_of(model), 6)
    if not isinstance(layer, nn.InstanceNorm1d):
        layer.eval()
        bounder.accumulate(batch(), loss_of(model), 6)
        layer.track_running_stats = False
        with pytest.raises(CrossExample, match=fix):
            bounder.accumulate(batch(), loss_of(model), 6)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_that_look_at_the_whole_batch(options: dict[str, Any]) -> None:
    for kind in (nn.Embedding, nn.EmbeddingBag):
        with pytest.raises(CrossExample, match=next(iter(options))):
            make_bounder(nn.Sequential(kind(10, 4, **options), nn.Linear(4, 2)), 1.0)


# Losses that mix examples


def contrastive(model: nn.Module) -> Any:
    def loss(b: Batch) -> Tensor:
        out = F.normalize(model(b["x"]), dim=1)
        return F.cross_entropy(out @ out.t() * 5, torch.arange(len(out)))

    return loss


def weighted_mean(model: nn.Module) -> Any:
    """As torch's and Hugging Face's losses do where labels are ignored: over the tokens of the whole batch."""
    return lambda b: F.cross_entropy(model(b["x"]).repeat(3, 1), torch.cat([b["y"], torch.full_like(b["y"], -100), b["y"] * 101 - 100]))


def summed(model: nn.Module) -> Any:
    return lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="sum")


@pytest.mark.parametrize("examples", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("mixing", [contrastive, weighted_mean, summed])
def test_a_loss_that_is_no_mean_over_examples(mixing: Any, examples: int) -> None:
    model = small()
    part = batch(examples)
    part["y"] = torch.arange(examples) % 2
    for engine in ("auto", "bookkeeping"):
        with pytest.raises(CrossExample, match="mean over examples"):
            make_bounder(model, 1.0, engine=engine).accumulate(part, mixing(model), examples)  # type: ignore[arg-type]


def test_a_loss_that_mixes_later() -> None:
    model = small()
    bounder = make_bounder(model, 1.0)
    bounder.accumulate(batch(), loss_of(model), 6)
    with pytest.raises(CrossExample):
        for _ in range(3):
            bounder.accumulate(batch(), contrastive(model), 6)


def test_losses_of_each_example() -> None:
    model = small()
    with pytest.raises(CrossExample, match="0-dimensional"):
        make_bounder(model, 1.0).accumulate(batch(), lambda b: F.cross_entropy(model(b["x"]), b["y"], reduction="none"), 6)


def test_a_loss_that_draws_random_numbers_is_let_through() -> None:
    model = small()
    bounder = make_bounder(model, 1.0, engine="bookkeeping")
    bounder.accumulate(batch(), lambda b: F.cross_entropy(model(b["x"] + torch.randn_like(b["x"])), b["y"]), 6)
    assert any(bool(v.any()) for v in bounder.take().values())


def test_a_loss_apart_from_the_model() -> None:
    bounder = make_bounder(small(), 1.0)
    bounder.accumulate(batch(), lambda b: b["x"].mean(), 6)
    assert not any(bool(v.any()) for v in bounder.take().values())


def test_the_probe_leaves_modes_as_they_are() -> None:
    t = families()["BERT"].trial()
    t.model.get_submodule("bert.embeddings").eval()
    modes = [m.training for m in t.model.modules()]
    truth = oracle(t)
    bounder: GradientBounder = make_bounder(t.model, truth.clipping_norm)
    bounder.accumulate(t.batch, t.loss, t.examples)
    assert [m.training for m in t.model.modules()] == modes
    assert difference(bounder.take(), truth)[0] < 1e-5
