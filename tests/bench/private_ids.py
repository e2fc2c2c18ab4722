"""MiniLM with embedding tables of the client against tables of the server: same process, same text, in alternation."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import privtensors as pt
from privtensors.core.meter import Reading
from privtensors.core.recorder import MemoryRecorder
from privtensors.hf import PrivateModel
from privtensors.testing.assets import minilm_path

HOLDERS = ("client", "server")
TEXT = "The parcel came two days late and the box was torn, but the lamp inside works, and the price was fair. " * 12


def prepared(model: Any) -> dict[str, PrivateModel]:
    """A private model per holder; prints what setting it up took."""
    found = {}
    for holder in HOLDERS:
        session, start = pt.Session(recorder=MemoryRecorder()), time.perf_counter()
        with session.meter.scope() as scope:
            found[holder] = pt.wrap(model, pt.Policy(infer=[pt.MPC(embeddings=holder)]), session=session, progress=False)
        spent = scope.spent
        print(f"set-up, tables at the {holder}: {time.perf_counter() - start:.2f} s, {spent.bytes_sent / 1e6:.1f} MB per party")
    return found


def measured(private: PrivateModel, inputs: dict[str, Any], want: torch.Tensor) -> tuple[float, float, float, Reading]:
    """Wall seconds, CPU seconds and largest error of one forward, and what it spent."""
    wall, cpu = time.perf_counter(), time.process_time()
    with private.session.meter.scope() as scope:
        output = private(**inputs).last_hidden_state
    return time.perf_counter() - wall, time.process_time() - cpu, float((output - want).abs().max()), scope.spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one line per length and holder: medians of the counted runs."""
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser(prog="python -m tests.bench private_ids", description=__doc__)
    parser.add_argument("--tokens", default="32,128", type=lambda text: [int(t) for t in text.split(",")], help="lengths, comma separated")
    parser.add_argument("--runs", type=int, default=5, help="counted runs per length and holder")
    options = parser.parse_args(arguments)
    path = minilm_path()
    model, tokenizer = AutoModel.from_pretrained(path, add_pooling_layer=False).eval(), AutoTokenizer.from_pretrained(path)
    private = prepared(model)
    for tokens in options.tokens:
        inputs = tokenizer(TEXT, return_tensors="pt", truncation=True, max_length=tokens)
        with torch.no_grad():
            want = model(**inputs).last_hidden_state
        runs: dict[str, list[tuple[float, float, float, Reading]]] = {holder: [] for holder in HOLDERS}
        for count in range(options.runs + 1):
            for holder in HOLDERS:
                run = measured(private[holder], inputs, want)
                if count:  # the first one warms up
                    runs[holder].append(run)
        for holder, done in runs.items():
            spent = done[-1][3]
            wall, cpu, offline = (statistics.median(v) for v in zip(*((w, c, s.offline_seconds) for w, c, _, s in done), strict=True))
            print(
                f"{tokens} tokens, tables at the {holder}: {wall:.2f} s (CPU {cpu:.2f}, offline {offline:.2f}), {spent.rounds} rounds, "
                f"{spent.bytes_sent / 1e6:.2f} MB per party, {spent.dealer_bytes / 1e6:.1f} MB from the dealer, "
                f"largest error {max(e for _, _, e, _ in done):.4f}"
            )


if __name__ == "__main__":
    main()
