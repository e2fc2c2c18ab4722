"""How far the answers of a transformed model are from those of the plain one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from privtensors.obfuscation.client import Client

_TOKENS: Final = 16
_TOLERANCE: Final = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # Llama's norms are float32


@dataclass(frozen=True)
class Difference:
    """Between two answers.

    Attributes:
        absolute: The largest |Δ|.
        scale: The largest value of the plain answer.
    """

    absolute: float
    scale: float


def tolerance(dtype: torch.dtype) -> float:
    """What rounding of weights of this type may make, in units of the answer's size."""
    return _TOLERANCE.get(dtype, _TOLERANCE[torch.float32])


@torch.no_grad()
def largest_difference(
    before: PreTrainedModel, after: PreTrainedModel, client: Client, *, earlier: Client | None = None
) -> Difference | None:
    """Both models asked one random input of 16 tokens, or one random image, and the decoded answers compared.

    Args:
        before: The plain model, or the one under the earlier key.
        after: The transformed one.
        client: Keys the input of ``after`` and decodes its answer.
        earlier: The same for ``before``, where that is not plain.

    Returns:
        None for a class whose answer is none of these: logits of labels or tokens, start and end logits, hidden states.
    """
    plain = _inputs(before, client)
    was = before.training
    before.train(False)
    try:
        expected = _answer(before, plain if earlier is None else _keyed(plain, earlier))
    finally:
        before.train(was)
    answer = _answer(after, _keyed(plain, client))
    if expected is None or answer is None:
        return None
    reference = expected[1] if earlier is None else _decoded(*expected, earlier)
    return Difference(float((reference - _decoded(*answer, client)).abs().max()), float(reference.abs().max()))


def _inputs(model: PreTrainedModel, client: Client) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)  # a public test input
    if client.patches is not None:
        shape = (1, client.patches.channels, *client.patches.size)
        return {"pixel_values": torch.randn(shape, generator=draw).to(model.dtype)}
    assert client.vocabulary is not None
    config: Any = model.config
    length = min(_TOKENS, max(1, int(getattr(config, "max_position_embeddings", _TOKENS)) - 3))
    return {"input_ids": torch.randint(client.vocabulary.size, (1, length), generator=draw)}


def _keyed(inputs: dict[str, Tensor], client: Client) -> dict[str, Tensor]:
    if "pixel_values" in inputs:
        return {"pixel_values": client.key_pixels(inputs["pixel_values"])}
    assert client.vocabulary is not None
    return {"input_ids": client.vocabulary.encode(inputs["input_ids"])}


def _answer(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[str, Tensor] | None:
    if type(model).__name__.endswith(("MultipleChoice", "PreTraining")):
        return None
    output: Any = model(**{name: values.to(model.device) for name, values in inputs.items()})
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return name, getattr(output, name).double().cpu()
    if getattr(output, "start_logits", None) is not None:
        return "start_logits", torch.stack([output.start_logits, output.end_logits]).double().cpu()
    return None


def _decoded(name: str, values: Tensor, client: Client) -> Tensor:
    if name == "last_hidden_state":
        return client.decode_hidden(values)
    fits = client.labels is not None or (client.vocabulary is not None and values.shape[-1] == client.vocabulary.size)
    return client.decode_logits(values) if name == "logits" and fits else values
