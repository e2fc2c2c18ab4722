"""Models, tokenizers and image processors from a folder or a name, with the reason where they cannot be had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from privtensors.errors import InvalidInput, MissingExtra, ObfuscationError, UnknownFamily
from privtensors.obfuscation.equivariant.families import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


def load_model(source: str | Path) -> PreTrainedModel:
    """The model in the class that its configuration names (``architectures``), with its task head, in evaluation mode.

    Args:
        source: A folder, or a name where a model hub can be reached.

    Raises:
        InvalidInput: There is no model, or it cannot be read.
        UnknownFamily: Of no family that can be obfuscated.
        ObfuscationError: The checkpoint lacks weights of that class, which would be drawn at random.
    """
    import transformers

    with _reading(source, "no configuration", "Give a folder with config.json, or a name that the hub knows"):
        config: Any = transformers.AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    kind = _class_of(config, str(source))
    with _reading(source, "no model", "Give a folder with model.safetensors"), without_bars():
        model, report = kind.from_pretrained(str(source), output_loading_info=True, use_safetensors=True)  # no pickle
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        what = f"the checkpoint lacks {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        fix = f"Fine-tune it as {kind.__name__} and save it, or set architectures in config.json to the class it was saved from"
        raise ObfuscationError(what, where=str(source), fix=fix)
    found: PreTrainedModel = model.eval()
    return found


def load_processor(source: str | Path, model: PreTrainedModel) -> Any:
    """The tokenizer of a model of text, the image processor of a model of pixels.

    Raises:
        InvalidInput: There is none, or it cannot be read.
        MissingExtra: The image processor needs a package that is not installed.
    """
    if family_of(model.config.model_type).pixels:
        return load_image_processor(source)
    return load_tokenizer(source)


def load_tokenizer(source: str | Path, *, local: bool = False) -> Any:
    """The tokenizer that stock ``AutoTokenizer`` finds.

    Raises:
        InvalidInput: There is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    fix = "Put its files there: tokenizer.save_pretrained(folder)"
    with _reading(source, "no tokenizer", fix):
        found: Any = AutoTokenizer.from_pretrained(str(source), local_files_only=local, trust_remote_code=False)
    if set(found.get_vocab()) <= set(found.all_special_tokens):  # without files, some classes make an empty one
        raise InvalidInput("no tokenizer can be loaded: it has special tokens only", where=str(source), fix=fix)
    return found


def load_image_processor(source: str | Path, *, local: bool = False) -> Any:
    """The image processor that stock ``AutoImageProcessor`` finds.

    Raises:
        InvalidInput: There is none, or it cannot be read.
        MissingExtra: It needs a package that is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise MissingExtra("pillow is not installed", where=str(source), fix="pip install pillow") from None
    from transformers import AutoImageProcessor

    loader: Any = AutoImageProcessor
    with _reading(source, "no image processor", "Put preprocessor_config.json there: processor.save_pretrained(folder)"):
        return loader.from_pretrained(str(source), local_files_only=local, trust_remote_code=False)


def _stock_class(architecture: str, where: str) -> Any:
    """A model class of ``transformers`` by its name.

    Raises:
        UnknownFamily: There is no such class.
    """
    import transformers

    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        fix = "Set architectures in config.json to the stock class of transformers that the weights were saved from"
        raise UnknownFamily(f"{architecture!r} is no model class of transformers", where=where, fix=fix)
    return found


def _class_of(config: Any, where: str) -> Any:
    family = family_of(config.model_type)
    names = list(config.architectures or ())
    if len(names) != 1:
        fix = f"Set architectures in config.json to one of {', '.join(sorted(family.heads))}"
        raise UnknownFamily(f"the configuration names {len(names)} classes, so the task is unknown", where=where, fix=fix)
    return _stock_class(names[0], where)


@contextlib.contextmanager
def _reading(source: str | Path, what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, InvalidInput | UnknownFamily | ObfuscationError | MissingExtra):
            raise
        if "does not recognize this architecture" in str(error):
            raise UnknownFamily("transformers does not know its architecture", where=str(source), fix="Give a stock model") from None
        raise InvalidInput(f"{what} can be loaded ({type(error).__name__})", where=str(source), fix=fix) from error


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bars of ``transformers`` while weights are read or written; there is one of our own."""
    from transformers.utils import logging as reports

    logging: Any = reports
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
