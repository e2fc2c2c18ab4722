"""The published breaks of keyed models, reproduced on real weights: MiniLM (30,522 tokens) and a Llama of 15 million parameters.

python -m tests.bench obfuscation-attacks --tokens 2000
python -m tests.bench obfuscation-attacks --only prompts
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from privtensors.audit.obfuscation import (
    Attack,
    Attacker,
    ColumnMatching,
    Invariant,
    Probe,
    PromptDecoding,
    RowMatching,
    Schemes,
    SeedEnumeration,
    Signature,
    Spectral,
    Target,
    UnitMatching,
    View,
    load_open,
    tables_of,
)
from privtensors.audit.obfuscation.seeds import likely_seeds
from privtensors.obfuscation.equivariant import maps_of, transform
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews, stories15m

NOISES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Figure:
    """One attack, one scheme.

    Attributes:
        scheme: What is attacked.
        noise: In standard deviations.
        attack: How.
        recovered: Share of the sampled tokens, or of the prompts' tokens.
        published: What the literature or the project's notes say; None where nothing is.
        seconds: Wall time.
    """

    scheme: str
    noise: float
    attack: str
    recovered: float
    published: float | None
    seconds: float


def share(target: Target, attack: Attack, made: Schemes, tokens: int, published: float | None = None) -> Figure:
    start = time.perf_counter()
    probe = Probe.sampled(target.plain, torch.empty(0, dtype=torch.int64), tokens)
    view = View(made.public.size, public=made.public, server=target.tables)
    found = probe.score(attack.recover(view, probe.ids)).tokens
    return Figure(target.scheme, target.noise, attack.name, found, published, time.perf_counter() - start)


def fine_tuned(target: Target, tokenizer: Any, steps: int) -> Target:
    """A few steps of all weights on keyed reviews."""
    model = target.model
    head = torch.nn.Linear(model.config.hidden_size, 2)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=5e-5)
    reviews = split_reviews(movie_reviews()).train
    model.train()
    for step in range(steps):
        batch = reviews[8 * step : 8 * step + 8]
        encoded = tokenizer([one.text for one in batch], return_tensors="pt", padding=True, truncation=True, max_length=64)
        states = model(input_ids=target.keyed[encoded["input_ids"]], attention_mask=encoded["attention_mask"]).last_hidden_state
        loss = torch.nn.functional.cross_entropy(head(states[:, 0]), torch.tensor([one.label for one in batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return replace(target, scheme=f"{target.scheme}, {steps} steps of fine-tuning", tables=tables_of(model.eval()))


def tables(tokens: int, steps: int, show: Callable[[Figure], None]) -> None:
    model, tokenizer = load_open(minilm_path())
    special = tuple(sorted(tokenizer.all_special_ids))
    words = tuple(sorted(set(tokenizer.get_vocab().values()) - set(special)))
    made = Schemes(model, special, words)
    row, differences, ordered = (RowMatching(one) for one in (Signature.ROW, Signature.DIFFERENCES, Signature.SORTED))
    show(share(made.vocabulary_only(), row, made, tokens, 1.0))
    for noise, known in zip(NOISES, (1.0, 1.0, 0.999, 0.945, 0.335, 0.0004), strict=True):
        target = made.hidden_permutation(noise)
        show(share(target, ordered, made, tokens, known))
        show(share(target, ColumnMatching(), made, tokens))
        show(share(target, UnitMatching(), made, tokens))
    for noise, known in zip(NOISES, (1.0, 1.0, 1.0, 1.0, 0.962, 0.0065), strict=True):
        target = made.hidden_orthogonal(noise)
        show(share(target, Spectral(0), made, tokens, known))
        show(share(target, Spectral(), made, tokens))
    for attack in (ordered, UnitMatching()):
        show(share(made.equivariant(), attack, made, tokens, 1.0))
    for factor in (3, 10):
        target = made.sentinel_compat(factor=factor)
        show(share(target, row, made, tokens, 0.74 if factor == 3 else None))
        show(share(target, differences, made, tokens, 1.0))
        show(share(fine_tuned(target, tokenizer, steps), differences, made, tokens, 1.0))
    show(share(made.sentinel_compat(), SeedEnumeration(Attacker.SERVER, words, likely_seeds()), made, tokens))
    for noise in (0.0, 0.5, 1.0):
        target = made.sentinel_hardened(noise)
        for attack in (differences, ordered, Spectral(), ColumnMatching(), UnitMatching()):
            show(share(target, attack, made, tokens))


@torch.no_grad()
def prompts(number: int, length: int, candidates: int, show: Callable[[Figure], None]) -> None:
    """Prompts that the model itself has written, read off the hidden states of the rotated model, layer by layer."""
    model = stories15m().eval()
    key = ObfuscationKey.generate()
    vocabulary, labels = maps_of(model, key)
    assert vocabulary is not None
    keyed = transform(model, key, vocabulary=vocabulary, labels=labels)
    torch.manual_seed(0)
    first = int(model.config.bos_token_id)
    texts = [model.generate(torch.tensor([[first]]), max_new_tokens=length, do_sample=True)[0] for _ in range(number)]
    for layer in range(1, model.config.num_hidden_layers):
        start, right, whole = time.perf_counter(), 0, 0
        for text in texts:
            states = keyed(input_ids=vocabulary.encode(text)[None], output_hidden_states=True).hidden_states[layer][0]
            found = PromptDecoding(layer, Invariant.PRODUCTS, candidates).decode(model, states, first)
            right, whole = right + int((found == text).sum()), whole + len(text)
        show(Figure("equivariant, Llama", 0.0, f"prompt decoding, layer {layer}", right / whole, 0.98, time.perf_counter() - start))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="tests.bench obfuscation-attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=2048, help="likeliest tokens that are tried at each place")
    parser.add_argument("--only", choices=("tables", "prompts"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    figures: list[Figure] = []

    def show(one: Figure) -> None:
        known = "" if one.published is None else f"published {one.published:.2%}"
        print(f"{one.scheme:58} noise {one.noise:<5g}{one.attack:32}{one.recovered:9.2%}  {known:18}{one.seconds:7.1f} s", flush=True)
        figures.append(one)

    if options.only != "prompts":
        tables(options.tokens, options.steps, show)
    if options.only != "tables":
        prompts(options.prompts, options.length, options.candidates, show)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in figures], indent=1))
