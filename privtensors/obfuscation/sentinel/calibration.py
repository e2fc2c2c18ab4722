"""How much noise buys and costs: each attack's recovery next to the scores after fine-tuning, on the owner's own task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from privtensors.obfuscation.keys import ObfuscationKey
from privtensors.obfuscation.loading import load_tokenizer
from privtensors.obfuscation.sentinel.data import LocalData
from privtensors.obfuscation.sentinel.encoding import Encoder, KeyedEncoder, PlainEncoder
from privtensors.obfuscation.sentinel.hardened import check_noise, harden, hidden_units
from privtensors.obfuscation.sentinel.recovery import Recovery, recover
from privtensors.obfuscation.sentinel.silence import quiet
from privtensors.obfuscation.sentinel.table import table_of
from privtensors.obfuscation.sentinel.training import Advance, TrainingOptions, encode, scores, train
from privtensors.obfuscation.sentinel.words import KeyedWords, WordHash, keyed_word_tokenizer, specials_of
from privtensors.obfuscation.vocabulary import Labels, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Stage = Callable[[str], Advance]
"""Called with the title of each run; gives what is told of its steps."""


@dataclass(frozen=True)
class NoiseCost:
    """One amount of noise.

    Attributes:
        noise: In units of a row's standard deviation; None for the plain model.
        metrics: Scores on the evaluation examples after fine-tuning.
        recovery: What a server with the fine-tuned weights and the open model gets back; None for the plain model.
    """

    noise: float | None
    metrics: Mapping[str, float]
    recovery: Recovery | None


def calibrate(
    model_name_or_path: str | Path,
    data: LocalData,
    noises: Sequence[float],
    *,
    task: str = "classification",
    options: TrainingOptions | None = None,
    key: ObfuscationKey | None = None,
    stage: Stage | None = None,
) -> tuple[NoiseCost, ...]:
    """Fine-tune the plain model once and the hardened one with each amount of noise, from the same head and order of examples.

    Nothing is written. Guarantee class of what is measured: heuristic. The attacks are a sample of known ones: low recovery is no proof.

    Args:
        model_name_or_path: The plain model.
        data: What to learn and what to judge by.
        noises: Amounts, in units of a row's standard deviation.
        task: ``"classification"`` or ``"ner"``.
        options: How to train.
        key: Default: a fresh one, the same for every amount.
        stage: Called with the title of each run.

    Returns:
        The plain model's row, then one per amount.

    Raises:
        ParameterError: An amount is out of bounds.
        UnknownFamily, InvalidInput, ObfuscationError, MissingExtra: As ``convert`` and ``finetune``.
    """
    for noise in noises:
        check_noise(noise)
    chosen, secret = options or TrainingOptions(), key or ObfuscationKey.generate()
    open_stage: Stage = stage or (lambda title: lambda done, total: None)
    tokenizer = load_tokenizer(model_name_or_path)
    plain = with_head(model_name_or_path, task, len(data.labels), chosen.seed)
    public = with_head(model_name_or_path, task, len(data.labels), chosen.seed)
    rows = len(table_of(public))
    vocabulary = Vocabulary.from_key(secret, rows, fixed=specials_of(tokenizer).values())
    units = hidden_units(secret, table_of(public).shape[1])
    order = tuple(data.labels[index] for index in Labels.from_key(secret, len(data.labels)).plain.tolist())
    words = WordHash.of_key(secret)
    keyed = keyed_word_tokenizer(tokenizer, words, dict(enumerate(vocabulary.keyed.tolist())))
    encoder = KeyedEncoder(KeyedWords(tokenizer, words), keyed)

    def run(model: PreTrainedModel, encoder: Encoder, names: tuple[str, ...], title: str) -> Mapping[str, float]:
        encoded = encode(encoder, data.train, names, task, chosen.max_seq_length)
        train(model, encoded.rows, encoder, task, chosen, open_stage(title))
        return scores(model, encoder, data.evaluation, names, task, chosen.max_seq_length)

    found = [NoiseCost(None, run(plain, PlainEncoder(tokenizer), data.labels, "plain"), None)]
    for noise in noises:
        model = harden(public, secret, vocabulary, noise=noise)
        metrics = run(model, encoder, order, f"noise {noise:g}")
        found.append(NoiseCost(noise, metrics, recover(public, model, vocabulary.keyed, units=units)))
    return tuple(found)


def with_head(source: str | Path, task: str, labels: int, seed: int) -> PreTrainedModel:
    """A checkpoint in float32 with a head for the task; one that is not there is drawn from ``seed``."""
    import transformers

    kind: Any = transformers.AutoModelForTokenClassification if task == "ner" else transformers.AutoModelForSequenceClassification
    transformers.set_seed(seed)
    with quiet():
        model: PreTrainedModel = kind.from_pretrained(source, num_labels=labels, dtype=torch.float32, ignore_mismatched_sizes=True)
    return model
