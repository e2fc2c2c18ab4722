"""Further models on shares: real weights (stories15M, MobileNetV2) and GPT-2 and ViT of 4 layers and width 256 with random ones.

Two parties and the dealer in this process, alternating with the plain model. Generation is greedy with a key-value cache;
its figures are per token, once with the logits revealed and once with the index of the largest only. A second table has the
cost of that index alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import privtensors as pt
from privtensors.core.recorder import MemoryRecorder
from privtensors.testing.assets import mobilenet_v2, stories15m

ONCE_UPON_A_TIME: Final = (1, 9038, 2501, 263, 931)
PROMPTS: Final[tuple[tuple[int, ...], ...]] = (ONCE_UPON_A_TIME, (1, 365, 2354), (1, 3118, 2462), (1, 450, 4799, 9377))
PHOTOS: Final = ("china.jpg", "flower.jpg")
NEW_TOKENS: Final = 20
ROW_LENGTHS: Final = (4, 1_000, 32_000, 50_257)


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one kind of input; of a generation, per token.

    Attributes:
        agrees: The largest logit, or every generated token, is the plain model's.
        margin: Least distance of the two largest plain logits wherever one was chosen; below twice the error either may win.
        error_max: Largest difference of a revealed logit, absolute; 0 where no logit was revealed.
        largest: Largest plain logit, absolute.
    """

    model: str
    run: str
    plain_s: float
    total_s: float
    offline_s: float
    rounds: int
    sent_mb: float
    dealer_mb: float
    agrees: str
    margin: float
    error_max: float
    error_mean: float
    largest: float


def least_margin(logits: Tensor) -> float:
    """Least distance of the two largest along the last axis."""
    top = logits.topk(2).values
    return float((top[..., 0] - top[..., 1]).min())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result and wall seconds of one call."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def gpt2() -> Any:
    """GPT-2 of 4 layers, width 256, vocabulary 5,000, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=5_000, n_embd=256, n_layer=4, n_head=8, n_positions=256, initializer_range=0.06, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


def vit() -> Any:
    """ViT of 4 layers, width 256, 50 tokens (112 x 112 pixels in patches of 16), 100 classes, random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024, image_size=112, num_labels=100,
        initializer_range=0.06,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def photo(name: str) -> Tensor:
    """A photograph that scikit-learn ships, as ImageNet models take it: 256 pixels high, centre 224 x 224, normalised."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1).float() / 255
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((pixels - mean) / deviation).unsqueeze(0)


def private_of(model: Any, outputs: Literal["full", "argmax"] = "full") -> pt.PrivateModel:
    """The model on shares, in a session of its own."""
    return pt.wrap(model, pt.Policy(infer=[pt.MPC()], outputs=outputs), session=pt.Session(recorder=MemoryRecorder()))


def forwards(name: str, run: str, model: Any, inputs: list[dict[str, Tensor]]) -> Row:
    """Every input once, after a warm-up on the first."""
    private = private_of(model)
    private(**inputs[0])
    found = []
    for batch in inputs:
        with torch.no_grad():
            plain, plain_s = timed(lambda batch=batch: model(**batch).logits)
        with private.session.meter.scope() as scope:
            logits, total_s = timed(lambda batch=batch: private(**batch).logits)
        found.append((plain, logits, plain_s, total_s, scope.spent))
    right = sum(bool(torch.equal(p.argmax(-1), q.argmax(-1))) for p, q, *_ in found)
    errors = [(q - p).abs() for p, q, *_ in found]
    spent = found[0][4]
    return Row(
        name,
        run,
        statistics.median(f[2] for f in found),
        statistics.median(f[3] for f in found),
        statistics.median(f[4].offline_seconds for f in found),
        spent.rounds,
        spent.bytes_sent / 1e6,
        spent.dealer_bytes / 1e6,
        f"{right}/{len(found)}",
        min(least_margin(f[0]) for f in found),
        max(float(e.max()) for e in errors),
        statistics.mean(float(e.mean()) for e in errors),
        max(float(f[0].abs().max()) for f in found),
    )


def generations(name: str, model: Any, prompts: list[Tensor], outputs: Literal["full", "argmax"], steps: int) -> Row:
    """Greedy generation from every prompt; figures are per new token."""
    private = private_of(model, outputs)
    found = []
    for ids in prompts:
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": steps, "do_sample": False}
        scored = {**options, "return_dict_in_generate": True, "output_logits": True}
        want, plain_s = timed(lambda ids=ids, scored=scored: model.generate(ids, **scored))
        with private.session.meter.scope() as scope:
            got, total_s = timed(lambda ids=ids, options=options: private.generate(ids, **options))
        margin = least_margin(torch.stack(want.logits))
        found.append((bool(torch.equal(got, want.sequences)), plain_s / steps, total_s / steps, scope.spent, margin))
    spent = found[0][3]
    return Row(
        name,
        f"{steps} tokens, {'logits' if outputs == 'full' else 'index only'}",
        statistics.median(f[1] for f in found),
        statistics.median(f[2] for f in found),
        statistics.median(f[3].offline_seconds for f in found) / steps,
        round(spent.rounds / steps),
        spent.bytes_sent / 1e6 / steps,
        spent.dealer_bytes / 1e6 / steps,
        f"{sum(f[0] for f in found)}/{len(found)}",
        min(f[4] for f in found),
        0.0,
        0.0,
        0.0,
    )


def rows(steps: int, prompts: int) -> list[Callable[[], list[Row]]]:
    """One job per model."""
    random_ids = [torch.randint(5, 5_000, (1, 16), generator=torch.Generator().manual_seed(n)) for n in range(prompts)]
    images = [torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(n)) for n in range(prompts)]
    stories = [torch.tensor([ids]) for ids in PROMPTS[:prompts]]

    def gpt() -> list[Row]:
        model = gpt2()
        first = forwards("GPT-2 4x256", "16 tokens", model, [{"input_ids": ids} for ids in random_ids])
        return [first, *(generations("GPT-2 4x256", model, random_ids, outputs, steps) for outputs in ("full", "argmax"))]

    def story() -> list[Row]:
        model = stories15m()
        texts = [model.generate(ids, attention_mask=torch.ones_like(ids), max_length=25, do_sample=False) for ids in stories]
        first = forwards("stories15M", "25 tokens", model, [{"input_ids": ids} for ids in texts])
        return [first, *(generations("stories15M", model, stories, outputs, steps) for outputs in ("full", "argmax"))]

    return [
        gpt,
        lambda: [forwards("ViT 4x256", "112 x 112 pixels", vit(), [{"pixel_values": x} for x in images])],
        story,
        lambda: [forwards("MobileNetV2", "photo, 224 x 224", mobilenet_v2(), [{"pixel_values": photo(name)} for name in PHOTOS])],
    ]


def index_table() -> Table:
    """The index of the largest of one row, alone."""
    table = Table(title="Index of the largest of one row", title_justify="left")
    for name in ("row length", "rounds", "sent bytes", "dealer bytes"):
        table.add_column(name, justify="right")
    for length in ROW_LENGTHS:
        with pt.Session(recorder=MemoryRecorder()) as session:
            row = pt.protect(torch.randn(1, length, generator=torch.Generator().manual_seed(0)), pt.MPC())
            with session.meter.scope() as scope:
                row.argmax(-1)
        spent = scope.spent
        table.add_row(f"{length:,}", str(spent.rounds), f"{spent.bytes_sent:,}", f"{spent.dealer_bytes:,}")
    return table


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench models", description=__doc__)
    parser.add_argument("--steps", type=int, default=NEW_TOKENS, help="tokens to generate per prompt")
    parser.add_argument(
        "--prompts", type=int, default=len(PROMPTS), choices=range(1, len(PROMPTS) + 1), help="prompts and images per model"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads, for plain and private alike")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    found = [row for job in rows(options.steps, options.prompts) for row in job()]
    table = Table(title=f"batch 1, {options.threads} thread(s); of a generation: per token", title_justify="left")
    for name in ("model", "run"):
        table.add_column(name, no_wrap=True)
    for name in ("plain s", "total s", "offline s", "rounds", "sent MB", "dealer MB", "agrees", "margin", "max err", "mean err", "largest"):
        table.add_column(name, justify="right")
    for r in found:
        figures = (f"{r.error_max:.4f}", f"{r.error_mean:.5f}", f"{r.largest:.1f}") if r.largest else ("", "", "")
        cells = (f"{r.plain_s:.3f}", f"{r.total_s:.2f}", f"{r.offline_s:.2f}", str(r.rounds), f"{r.sent_mb:.2f}", f"{r.dealer_mb:.1f}")
        table.add_row(r.model, r.run, *cells, r.agrees, f"{r.margin:.4f}", *figures)
    console = Console(width=160)
    console.print(table)
    console.print(index_table())
    console.print("SIMULATED: one process holds every party's view. Bytes are what one computing party sends; the dealer's are separate.")
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(r) for r in found], "threads": options.threads}, indent=2))
