"""``privtensors train --scheme sentinel``: a converted model learns a task from keyed text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch

from privtensors.errors import FileFormatError, InvalidInput, ObfuscationError, ParameterError
from privtensors.obfuscation.folders import check_pair, check_weights, write_folders
from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.loading import load_tokenizer
from privtensors.obfuscation.sentinel.conversion import NO_KEY_ID, copy_secrets, write_manifests
from privtensors.obfuscation.sentinel.data import TASKS, LocalData
from privtensors.obfuscation.sentinel.encoding import KeyedEncoder
from privtensors.obfuscation.sentinel.owner import Owner, check_words, load_owner
from privtensors.obfuscation.sentinel.silence import quiet
from privtensors.obfuscation.sentinel.training import Advance, TrainingOptions, encode, scores, train

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD: Final[Mapping[str, str]] = MappingProxyType({"classification": "ForSequenceClassification", "ner": "ForTokenClassification"})


@dataclass(frozen=True)
class FineTuned:
    """What a run gave.

    Attributes:
        task: ``"classification"`` or ``"ner"``.
        labels: Label names in plain order.
        metrics: ``accuracy``, ``precision``, ``recall``, ``f1`` on the evaluation examples, of entities for "ner"; empty if not judged.
        train_examples: How many it learnt from; 0 without training.
        eval_examples: How many it was judged by.
        steps: Steps of the optimiser.
        seconds: Wall time.
        server: The new folder of the model's side; None without training.
        client: The new folder of the owner; None without training.
        key_id: Public id of the key; zeros with ``compat``.
    """

    task: str
    labels: tuple[str, ...]
    metrics: Mapping[str, float]
    train_examples: int
    eval_examples: int
    steps: int
    seconds: float
    server: Path | None
    client: Path | None
    key_id: str


def finetune(
    model_dir: str | Path,
    data: LocalData,
    output_dir: str | Path | None,
    *,
    task: str = "classification",
    encryption_key: str | Path | ObfuscationKey | None = None,
    client_dir: str | Path | None = None,
    passphrase: str | None = None,
    do_train: bool = True,
    do_eval: bool = True,
    options: TrainingOptions | None = None,
    overwrite: bool = False,
    advance: Advance | None = None,
) -> FineTuned:
    """Fine-tune a converted model on keyed text, judge it, and write a new pair of folders.

    The owner runs this: it sees the plain data, the key and the model. Guarantee class: heuristic, see ``convert``.

    Args:
        model_dir: Server folder of a conversion or of an earlier run.
        data: What to learn and what to judge by.
        output_dir: The new server folder; the client's is beside it with ``-client`` appended. Needed for training.
        task: ``"classification"`` (one label per text) or ``"ner"`` (one tag per word).
        encryption_key: As for ``load_owner``.
        client_dir: The client folder of ``model_dir``; default beside it with ``-client`` appended.
        passphrase: Opens a wrapped key file.
        do_train: Train.
        do_eval: Judge on ``data.evaluation``.
        options: How to train.
        overwrite: Replace folders of an earlier run.
        advance: Called with the number of steps done and their total.

    Raises:
        WrongKey: The key is not the model's.
        UnpairedFolders, FileFormatError, ObfuscationError: A folder is not as it must be, or a label is unknown to the model's head.
        ParameterError: Neither training nor evaluation, or no ``output_dir`` for training.
        MissingExtra: accelerate or scikit-learn is not installed.
    """
    start = time.perf_counter()
    chosen = options or TrainingOptions()
    if task not in TASKS:
        raise ParameterError(f"the task {task!r} is unknown", where="finetune", fix=f"Known are {', '.join(TASKS)}")
    if not (do_train or do_eval) or (do_train and output_dir is None):
        raise ParameterError(
            "nothing to do, or nowhere to write", where="finetune", fix="Train into an output folder, or evaluate, or both"
        )
    server = Path(model_dir)
    client = beside(server) if client_dir is None else Path(client_dir)
    check_pair(client, server)
    check_weights(server)
    owner = load_owner(client, encryption_key=encryption_key, passphrase=passphrase)
    tokenizer: Any = load_tokenizer(server, local=True)
    check_words(owner, tokenizer)
    encoder = KeyedEncoder(owner.words, tokenizer)
    names = _names(owner, data, task, do_train)
    order = keyed_order(owner, names)
    model = _load(server, task, order if owner.key is None else tuple(f"LABEL_{i}" for i in range(len(order))), chosen.seed)
    _check_length(model, chosen.max_seq_length)
    steps = 0
    if do_train:
        encoded = encode(encoder, data.train, order, task, chosen.max_seq_length)
        steps = train(model, encoded.rows, encoder, task, chosen, advance or (lambda done, total: None))
    metrics = scores(model, encoder, data.evaluation, order, task, chosen.max_seq_length) if do_eval else {}
    places: tuple[Path | None, Path | None] = (None, None)
    if do_train and output_dir is not None:
        places = (Path(output_dir), beside(Path(output_dir)))
        _save(model, tokenizer, owner, names, client, places[0], places[1], overwrite)
    return FineTuned(
        task=task,
        labels=names,
        metrics=metrics,
        train_examples=len(data.train) if do_train else 0,
        eval_examples=len(data.evaluation) if do_eval else 0,
        steps=steps,
        seconds=time.perf_counter() - start,
        server=places[0],
        client=places[1],
        key_id=NO_KEY_ID if owner.key is None else owner.key.id,
    )


def beside(server: Path) -> Path:
    """Where the client folder of a server folder is by default."""
    return server.with_name(f"{server.name}-client")


def keyed_order(owner: Owner, names: tuple[str, ...]) -> tuple[str, ...]:
    """The label names in the order of the model's outputs."""
    labels = owner.labels(len(names))
    return names if labels is None else tuple(names[index] for index in labels.plain.tolist())


def _names(owner: Owner, data: LocalData, task: str, do_train: bool) -> tuple[str, ...]:
    """The names in plain order: those of the head there is, where it has the data's, else those of the data."""
    trained = owner.manifest.architecture.endswith(_HEAD[task]) and bool(owner.names)
    if trained and (not do_train or set(data.labels) <= set(owner.names)):
        if not set(data.labels) <= set(owner.names):
            fix = f"It knows {', '.join(map(ascii, owner.names[:10]))}"
            raise FileFormatError("the data have labels that the model does not know", where="dataset", fix=fix)
        return owner.names
    if not do_train:
        fix = "Add --do_train, or give the output folder of a run with this task"
        raise ObfuscationError(f"the model has no head for {task}", where=owner.manifest.architecture, fix=fix)
    return data.labels


def _load(server: Path, task: str, names: tuple[str, ...], seed: int) -> PreTrainedModel:
    """The model with a head for the task: its own where it has one of this size, else one drawn from ``seed``."""
    import transformers

    kind: Any = transformers.AutoModelForTokenClassification if task == "ner" else transformers.AutoModelForSequenceClassification
    transformers.set_seed(seed)
    labels = dict(enumerate(names))
    try:
        with quiet():
            model: PreTrainedModel = kind.from_pretrained(
                server, id2label=labels, label2id={name: i for i, name in labels.items()}, dtype=torch.float32, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"no model can be loaded ({type(error).__name__})", where=str(server), fix="Convert again") from error
    return model


def _check_length(model: PreTrainedModel, length: int) -> None:
    pad = model.config.pad_token_id or 0
    rows = int(model.config.max_position_embeddings)
    most = rows - pad - 1 if model.config.model_type == "roberta" else rows  # RoBERTa counts positions from its padding id on
    if length > most:
        raise ParameterError(f"rows of {length} tokens, the model takes {most}", where="max_seq_length", fix=f"Give at most {most}")


def _save(
    model: PreTrainedModel, tokenizer: Any, owner: Owner, names: tuple[str, ...], client: Path, server: Path, mine: Path, overwrite: bool
) -> None:
    with write_folders(server, mine, overwrite=overwrite, private=(mine,)) as (server_stage, client_stage):
        with quiet():
            model.cpu().save_pretrained(server_stage)
        tokenizer.save_pretrained(server_stage)
        owner.tokenizer.save_pretrained(client_stage)
        copy_secrets(client, client_stage)
        write_manifests(server_stage, client_stage, model, owner.manifest.key_id, names, dict(owner.manifest.options))
