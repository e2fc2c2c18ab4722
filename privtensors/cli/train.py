"""``privtensors train``: fine-tune a converted model on keyed text."""

from __future__ import annotations

import json as json_module
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privtensors.cli.ledger_output import one_line_errors
from privtensors.cli.text import printable
from privtensors.errors import UsageError

if TYPE_CHECKING:
    from privtensors.obfuscation.sentinel import FineTuned, LocalData, NoiseCost, TrainingOptions

_HEURISTIC = "heuristic: a server that holds the transformed weights of an open model recovers the tokens (privtensors audit obfuscation)"


def train(
    model: Annotated[
        Path,
        typer.Option(
            "--model_name_or_path",
            "--model-name-or-path",
            metavar="FOLDER",
            help="What `privtensors convert` wrote; with --calibrate a plain model.",
        ),
    ],
    dataset: Annotated[
        Path,
        typer.Option(
            "--dataset_name", "--dataset-name", metavar="PATH", help="CSV, JSON or JSON lines (text, label); CoNLL columns; or a folder."
        ),
    ],
    scheme: Annotated[str, typer.Option(metavar="NAME", help="sentinel: keyed text.")] = "sentinel",
    encryption_key: Annotated[
        str | None,
        typer.Option(
            "--encryption_key",
            "--encryption-key",
            metavar="KEY",
            help="Key file, or passphrase (others may see it); default: the client's.",
        ),
    ] = None,
    client: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Its client folder [FOLDER-client].")] = None,
    passphrase_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Its first line opens a wrapped key file.")] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", "--output-dir", metavar="FOLDER", help="New folder of the model; the client's goes beside it."),
    ] = None,
    do_train: Annotated[bool, typer.Option("--do_train", "--do-train", help="Train.")] = False,
    do_eval: Annotated[bool, typer.Option("--do_eval", "--do-eval", help="Judge on the held-out examples.")] = False,
    task_name: Annotated[str, typer.Option("--task_name", "--task-name", metavar="TASK", help="classification or ner.")] = "classification",
    max_seq_length: Annotated[
        int, typer.Option("--max_seq_length", "--max-seq-length", min=4, max=8192, help="Cut longer texts, in tokens.")
    ] = 128,
    batch_size: Annotated[
        int, typer.Option("--per_device_train_batch_size", "--per-device-train-batch-size", min=1, max=1 << 16, help="Examples per step.")
    ] = 8,
    learning_rate: Annotated[float, typer.Option("--learning_rate", "--learning-rate", min=0.0, help="Largest learning rate.")] = 5e-5,
    epochs: Annotated[float, typer.Option("--num_train_epochs", "--num-train-epochs", min=0.0, help="Passes over the examples.")] = 3.0,
    max_train: Annotated[int | None, typer.Option("--max_train_samples", "--max-train-samples", min=1, help="Use the first N.")] = None,
    max_eval: Annotated[int | None, typer.Option("--max_eval_samples", "--max-eval-samples", min=1, help="Use the first N.")] = None,
    seed: Annotated[int, typer.Option(help="Of the new head and the order of examples.")] = 42,
    calibrate: Annotated[
        str | None, typer.Option(metavar="NOISES", help="Instead: a table of recovery and utility for these noises, e.g. 0,0.5,1.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folders of an earlier run.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and nothing else there.")] = False,
) -> None:
    """Fine-tune a converted model (SentinelLMs, Mishra et al. 2024) on keyed text, and judge it.

    The owner runs this: the data are plain here. What is written has keyed words and weights only; the key stays in the client folder.
    """
    with one_line_errors(json):
        if scheme != "sentinel":
            raise UsageError(
                f"scheme {scheme!r} is not fine-tuned", where="--scheme", fix="Only sentinel is; equivariant needs no training"
            )
        if task_name not in ("classification", "ner"):
            raise UsageError(f"task {task_name!r} is unknown", where="--task_name", fix="Give classification or ner")
        if calibrate is None and not (do_train or do_eval):
            raise UsageError("nothing to do", where="privtensors train", fix="Add --do_train, --do_eval or both")
        if calibrate is None and do_train and output_dir is None:
            raise UsageError("nowhere to write", where="privtensors train", fix="Add --output_dir FOLDER")
        noises = None if calibrate is None else _noises(calibrate)
        if noises is not None and (do_train or do_eval or output_dir is not None or encryption_key is not None or client is not None):
            fix = "Leave out --do_train, --do_eval, --output_dir, --client, --encryption_key: it keeps no model"
            raise UsageError("--calibrate does not go with them", where="privtensors train", fix=fix)
        from privtensors.obfuscation import sentinel

        options = sentinel.TrainingOptions(epochs, batch_size, learning_rate, max_seq_length, seed)
        data = sentinel.load_data(dataset, task_name)
        data = replace(data, train=data.train[:max_train], evaluation=data.evaluation[:max_eval])
        if noises is not None:
            _calibrate(model, data, noises, task_name, options, json)
            return
        with ExitStack() as stages:
            found = sentinel.finetune(
                model,
                data,
                output_dir,
                task=task_name,
                encryption_key=encryption_key,
                client_dir=client,
                passphrase=_first_line(passphrase_file),
                do_train=do_train,
                do_eval=do_eval,
                options=options,
                overwrite=overwrite,
                advance=_advance(stages, "fine-tuning on keyed text") if do_train else None,
            )
        _show(found, json)


def _advance(stages: ExitStack, title: str) -> Any:
    """A stage that begins with the first step, when the number of steps is known."""
    from privtensors.cli.stages import Stages

    shown: list[Any] = []

    def advance(done: int, total: int) -> None:
        if not shown:
            shown.append(stages.enter_context(Stages().stage(title, total=total)))
            shown[0](done)
        else:
            shown[0](1)
        if done == total:
            stages.close()

    return advance


def _noises(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError("no list of numbers", where="--calibrate", fix="Give for example 0,0.5,1") from None


def _first_line(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        raise UsageError(
            "cannot be read, or is empty", where="--passphrase-file", fix="Give a file whose first line is the passphrase"
        ) from None


def _show(found: FineTuned, as_json: bool) -> None:
    if as_json:
        facts = asdict(found) | {name: None if (path := getattr(found, name)) is None else str(path) for name in ("server", "client")}
        typer.echo(json_module.dumps({"ok": True, "guarantee": "heuristic", **facts}, ensure_ascii=False))
        return
    typer.echo(f"learnt     from {found.train_examples} examples in {found.steps} steps, {found.seconds:.0f} s with everything")
    if found.metrics:
        values = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
        typer.echo(
            f"judged     on {found.eval_examples} examples: {values}{' (of entities, accuracy of words)' if found.task == 'ner' else ''}"
        )
    if found.server is not None:
        typer.echo(f"model      {printable(str(found.server))}: keyed weights and words, for the server")
        typer.echo(f"owner      {printable(str(found.client))}: keep it")
    typer.echo(f"guarantee  {_HEURISTIC}")


def _calibrate(model: Path, data: LocalData, noises: tuple[float, ...], task: str, options: TrainingOptions, as_json: bool) -> None:
    from privtensors.obfuscation import sentinel

    with ExitStack() as stages:
        rows = sentinel.calibrate(model, data, noises, task=task, options=options, stage=lambda title: _advance(stages, title))
    if as_json:
        typer.echo(json_module.dumps({"ok": True, "guarantee": "heuristic", "rows": [asdict(row) for row in rows]}))
        return
    _table(rows, "f1" if task == "ner" else "accuracy")


def _table(rows: tuple[NoiseCost, ...], metric: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="noise on the embedding: tokens that each attack recovers, and what the task keeps")
    names = {
        "EDNN": "neighbour_differences",
        "row-centred": "row_centred",
        "sorted row": "sorted_row",
        "spectral": "spectral",
        "aligned": "aligned",
    }
    for name in ("noise", *names, "accuracy" if metric == "accuracy" else "entity F1", "points lost"):
        table.add_column(name, justify="right")
    base = rows[0].metrics[metric]
    for row in rows:
        recovered = ["" if row.recovery is None else f"{100 * getattr(row.recovery, field):.1f} %" for field in names.values()]
        noise = "plain" if row.noise is None else f"{row.noise:g}"
        lost = "" if row.noise is None else f"{100 * (base - row.metrics[metric]):+.1f}"
        table.add_row(noise, *recovered, f"{100 * row.metrics[metric]:.1f} %", lost)
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    typer.echo(
        "aligned: hidden units put in order by LayerNorm and position parameters, then the nearest public row. It is the one that counts."
    )
    typer.echo(_HEURISTIC)
