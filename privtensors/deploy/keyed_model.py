"""The server's side of a keyed model: a stock transformers class over keyed weights, keyed ids in, keyed labels or ids out.

Guarantee class: heuristic. What runs here holds the transformed weights, and from those of an open model the key can be recovered
(100 % of the tokens): this hides inputs from who reads traffic or logs and lacks the weights, not from the host of this process.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from privtensors.deploy.config import TASKS
from privtensors.deploy.keyed_requests import PIXELS_TYPE, Bounds, ClassifyRequest, GenerateRequest, KeyedLimits, Refusal
from privtensors.errors import InvalidInput
from privtensors.obfuscation.folders import check_weights

FORMAT: Final = "privtensors keyed model"
VERSION: Final = 1
GENERATION: Final = "text-generation"
EMBEDDING: Final = "feature-extraction"
CLASSIFICATION: Final = ("text-classification", "token-classification", "image-classification")

# Task -> transformers' table of the classes that have its head.
_HEADS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        GENERATION: "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        EMBEDDING: "MODEL_MAPPING_NAMES",
    }
)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a keyed server says about its model, to anybody who asks.

    Attributes:
        key_id: Public id of the key under which the model was converted.
        weights: Digest of the converted weights, as in both manifests.
        model_type: As in ``config.json``, e.g. ``"bert"``.
        task: One of :data:`CLASSIFICATION`, :data:`GENERATION` or :data:`EMBEDDING`.
        labels: Number of labels; 0 for generation and embeddings.
        several: Whether an input may have several labels at once (transformers' multi_label_classification).
        bounds: What the model allows.
    """

    key_id: str
    weights: str
    model_type: str
    task: str
    labels: int
    several: bool
    bounds: Bounds

    def to_dict(self, limits: KeyedLimits) -> dict[str, Any]:
        """As JSON values: the answer to ``GET /v1/model``."""
        pixels = self.bounds.pixels
        return {
            "format": FORMAT,
            "version": VERSION,
            "key_id": self.key_id,
            "weights": self.weights,
            "model_type": self.model_type,
            "task": self.task,
            "labels": self.labels,
            "multi_label": self.several,
            "vocabulary": self.bounds.vocabulary,
            "token_types": self.bounds.types,
            "positions": self.bounds.length,
            "pixels": list(pixels) if pixels else None,
            "limits": {"batch": limits.batch, "tokens": limits.tokens, "new_tokens": limits.new_tokens, "body_kib": limits.body_kib},
            "protection": "heuristic: hides inputs from who lacks the weights, not from this server",
        }


class KeyedModel:
    """A server folder, loaded and ready. One forward at a time: callers take turns.

    Args:
        folder: What ``privtensors convert`` wrote as its server folder.
        device: Where to compute, e.g. ``"cuda"``; default the CPU.

    Raises:
        FileFormatError: It has no manifest (a conversion was interrupted), or its weights are not those of the manifest.
        UnpairedFolders: It is a client folder.
        InvalidInput: No model can be loaded from it, it lacks weights, or its task cannot be served.
    """

    def __init__(self, folder: Path, *, device: str | None = None) -> None:
        manifest = check_weights(folder)
        self._model, task = _load(folder)
        self._device = _device(device)
        self._model.to(self._device)
        config = self._model.config
        labels = int(config.num_labels) if task in CLASSIFICATION else 0
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        self.info = ModelInfo(manifest.key_id, manifest.weights, str(config.model_type), task, labels, several, _bounds(self._model))

    @torch.inference_mode()
    def classify(self, request: ClassifyRequest) -> Tensor:
        """Logits in the key's order of labels, float32 on the CPU: (batch, labels), for token classification (batch, length, labels).

        Raises:
            Refusal: The model gave a value that is not finite.
        """
        return _finite(self._model(**self._moved(request.inputs)).logits)

    @torch.inference_mode()
    def embed(self, request: ClassifyRequest) -> Tensor:
        """The mean of the last hidden states over the tokens that the mask keeps, in the key's basis: float32 (batch, width).

        Raises:
            Refusal: The model gave a value that is not finite.
        """
        inputs = self._moved(request.inputs)
        states: Tensor = self._model(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        return _finite((states * mask).sum(1) / mask.sum(1))

    @torch.inference_mode()
    def generate(self, request: GenerateRequest, seconds: float, given_up: Callable[[], bool]) -> list[list[int]]:
        """The new keyed ids of each row; rows that end early are padded.

        Args:
            request: What to continue and how.
            seconds: After so long the generation is given up.
            given_up: Asked once per token whether to give up.

        Raises:
            Refusal: It was given up.
        """
        from transformers import StoppingCriteriaList

        inputs, config = self._moved(request.inputs), self._model.generation_config
        if not bool(request.inputs["attention_mask"][:, -1].all()):
            raise Refusal(400, "invalid_value", "the mask ends in padding: a prompt is padded on its left")
        stop = _Stop(time.monotonic() + seconds, given_up)
        ends = config.eos_token_id
        first = ends[0] if isinstance(ends, list) and ends else ends
        pad = next((int(p) for p in (config.pad_token_id, first) if isinstance(p, int)), 0)
        options: dict[str, Any] = {"max_new_tokens": request.max_new_tokens, "num_beams": 1, "pad_token_id": pad}
        if request.do_sample:
            options |= {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        else:
            options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(secrets.randbits(63) if request.seed is None else request.seed)
            found = self._model.generate(**inputs, **options, stopping_criteria=StoppingCriteriaList([stop]))
        return [row[inputs["input_ids"].shape[1] :] for row in found.tolist()]

    def _moved(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        moved = {name: value.to(self._device) for name, value in inputs.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self._model.dtype)
        return moved


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise Refusal(500, "not_finite", "the model gave a value that is not finite")
    return values.float().cpu()


class _Stop:
    """Asked by ``generate`` after every token. It raises to give up: saying "stop" would hand out half an answer as a whole one."""

    def __init__(self, deadline: float, given_up: Callable[[], bool]) -> None:
        self._deadline, self._given_up = deadline, given_up

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        if self._given_up():
            raise Refusal(503, "stopping", "the server ends")
        if time.monotonic() > self._deadline:
            raise Refusal(503, "too_slow", "the generation took too long and was given up")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise InvalidInput(f"cannot compute on {name!r}", where="--device", fix="Give cpu, or a device that torch has") from None
    return device


def _load(folder: Path) -> tuple[Any, str]:
    """A stock model and its task. Nothing is fetched, no code of the folder is run, no weight is made up."""
    import transformers

    logging: Any = transformers.utils.logging
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
        task = _task(config, folder)
        model, report = getattr(transformers, TASKS[task]).from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, InvalidInput):
            raise
        what = f"no model can be loaded ({type(error).__name__})"
        raise InvalidInput(what, where=str(folder), fix="Give the server folder that privtensors convert wrote") from None
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
    if lacking := sorted(map(str, report["missing_keys"])) + sorted(map(str, report["mismatched_keys"])):
        what = f"{len(lacking)} weights are missing or of another shape, the first {lacking[0]}"
        raise InvalidInput(what, where=str(folder), fix="Convert the model again")
    return model.eval(), task


def _task(config: Any, folder: Path) -> str:
    from transformers.models.auto import modeling_auto

    name = (getattr(config, "architectures", None) or [""])[0]
    for task, table in _HEADS.items():
        classes = getattr(modeling_auto, table).get(config.model_type, ())
        if name == classes or (isinstance(classes, tuple) and name in classes):
            return task
    fix = f"Served are {', '.join(_HEADS)}; for others load the folder with transformers"
    raise InvalidInput(f"a model of class {name or 'unknown'} cannot be served", where=str(folder), fix=fix)


def _bounds(model: Any) -> Bounds:
    config = model.config
    if model.main_input_name == "pixel_values":
        sides = config.image_size
        height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
        return Bounds(0, pixels=(int(config.num_channels), int(height), int(width)))
    length = int(getattr(config, "max_position_embeddings", 0) or 0)
    for name, module in model.named_modules():  # RoBERTa counts positions from behind its padding index
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            length = module.num_embeddings - module.padding_idx - 1
    has_types = any(name.endswith("token_type_embeddings") for name, _ in model.named_modules())
    types = int(config.type_vocab_size) if has_types else 0
    return Bounds(int(model.get_input_embeddings().num_embeddings), types, length)


def accepted(info: ModelInfo) -> dict[str, str]:
    """Paths that take a request for this model, and the content type of each."""
    if info.task == GENERATION:
        return {"/v1/generate": "application/json"}
    if info.task == EMBEDDING:
        return {"/v1/embed": "application/json"}
    return {"/v1/classify": PIXELS_TYPE if info.bounds.pixels else "application/json"}
