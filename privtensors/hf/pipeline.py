"""``pipeline``: transformers' own pipelines, run on a private model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from privtensors.core.session import Session
from privtensors.errors import InvalidInput
from privtensors.hf import argmax
from privtensors.hf.model import PrivateModel
from privtensors.hf.obfuscated import ObfuscatedModel
from privtensors.hf.wrap import wrap
from privtensors.policy import Policy
from privtensors.policy.assets import Outputs

if TYPE_CHECKING:
    from transformers import Pipeline

TASKS: Final = ("feature-extraction", "image-classification", "sentiment-analysis", "text-classification")


def pipeline(
    task: str,
    model: Any = None,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    policy: Policy | None = None,
    session: Session | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Pipeline:
    """The same call as ``transformers.pipeline``; what it returns is the stock Pipeline with a private model inside.

    Args:
        task: One of ``text-classification`` (or ``sentiment-analysis``), ``feature-extraction``, ``image-classification``.
        model: A path, a name where a model hub can be reached, a loaded model, or a :class:`PrivateModel`.
        tokenizer: As in transformers; needed with a loaded model for text.
        image_processor: As in transformers; needed with a loaded model for images.
        policy: Default ``Policy(infer=["mpc"])``; with a PrivateModel, its own.
        session: As for :func:`privtensors.wrap`.
        progress: As for :func:`privtensors.wrap`.
        options: Passed on to ``transformers.pipeline``: ``top_k``, ``batch_size``, ``truncation``, ``revision``, …

    Returns:
        The stock Pipeline; its attribute ``private`` is the :class:`PrivateModel`. Under ``Policy(outputs="argmax")`` it
        answers with the label alone, without a score.

    Raises:
        InvalidInput: The task is not supported, there is no model, or a policy was given with a PrivateModel.
        PolicyError, UnknownFamily, OutOfRange, WrongKey, ObfuscationError: As :func:`privtensors.wrap`.
    """
    if task not in TASKS:
        raise InvalidInput(f"task {task!r} is not supported", where="pipeline", fix=f"Supported: {', '.join(TASKS)}")
    if model is None:
        raise InvalidInput("no model was given", where="pipeline", fix="pass model=, a path or a loaded model")
    if isinstance(model, PrivateModel) and (policy is not None or session is not None):
        raise InvalidInput("a wrapped model has its policy and session already", where="pipeline", fix="drop policy= and session=")
    if options.get("device", "cpu") not in ("cpu", -1) or "device_map" in options:
        raise InvalidInput("protected tensors stay on the CPU", where="pipeline, device", fix="drop device= and device_map=")
    import transformers

    make: Any = transformers.pipeline
    chosen = {"tokenizer": tokenizer, "image_processor": image_processor, **options, "device": "cpu"}
    source = model.model if isinstance(model, PrivateModel) else str(model) if isinstance(model, Path) else model
    stock = make(task, model=source, **{k: v for k, v in chosen.items() if v is not None})
    if isinstance(model, PrivateModel):
        private = model
    else:
        private = wrap(stock.model, policy or Policy(infer=["mpc"]), session=session, progress=progress)
    stock.model, stock.private = private.model, private
    if isinstance(private, ObfuscatedModel) and private.processor is None:  # so that save_pretrained needs no other
        private.processor = stock.tokenizer or stock.image_processor
    if private.policy.outputs == Outputs.ARGMAX and task != "feature-extraction":
        argmax.label_only(stock)
    pipe: Pipeline = stock
    return pipe
