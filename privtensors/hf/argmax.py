"""Policies that reveal only which logit is the largest: which models can follow them, what is chosen, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from privtensors.core.safetensor import SafeTensor
from privtensors.errors import PolicyError

_LOGITS: Final = ("logits", "start_logits", "end_logits", "prediction_logits", "seq_relationship_logits", "mc_logits")
_FULL: Final = "or let the policy reveal them: Policy(..., outputs='full')"

# What a greedy search may be told. Everything else changes scores, compares them or returns them, and there are none to change.
_GREEDY: Final = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "use_cache", "do_sample", "num_beams"}
    | {"num_return_sequences", "output_hidden_states", "output_attentions", "max_time", "transformers_version", "_from_model_config"}
    | {"temperature", "top_k", "top_p"}  # of sampling: greedy search does not read them
)


def check_model(model: Any) -> None:
    """Refuse a model whose answer is not the index of its largest logit.

    Raises:
        PolicyError: It has no logits, or they are no scores of classes that exclude each other.
    """
    name, config, where = type(model).__name__, model.config, "wrap, policy.outputs='argmax'"
    if model.base_model is model:
        what = f"{name} has no logits, so there is no largest one"
        raise PolicyError(what, where=where, fix=f"wrap a model with a head, {_FULL}")
    single = name.endswith(("ForSequenceClassification", "ForImageClassification")) and config.num_labels == 1
    if single or getattr(config, "problem_type", None) in ("regression", "multi_label_classification"):
        what = f"{name} answers with numbers or with several labels, of which the largest says little"
        raise PolicyError(what, where=where, fix=f"wrap a model that chooses one of its classes, {_FULL}")


def predictions(output: Mapping[str, Any], mask: Tensor | None, *, last: bool) -> dict[str, Tensor]:
    """For each kind of logits in ``output`` the protected index of the largest, int64, under the name of what it predicts.

    Args:
        output: The model's output object.
        mask: Its public attention mask, (batch, all tokens so far), or None.
        last: Only the last attended position counts: a causal language model's next token.

    Returns:
        E.g. ``{"predictions": (batch,)}``, or ``start_predictions`` and ``end_predictions`` of a question answering model.
    """
    found = {}
    for name in _LOGITS:
        logits = output.get(name)
        if isinstance(logits, SafeTensor):
            rows = _next(logits, mask) if last and name == "logits" else logits
            found[name.replace("logits", "predictions")] = rows.argmax(-1)
    return found


def _next(logits: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, tokens, vocabulary) → (batch, vocabulary) at the last attended position, which the public mask tells."""
    batch, tokens = logits.shape[:2]
    if mask is None:
        return logits[:, -1]
    places = (torch.arange(tokens) * mask[:, -tokens:].bool()).argmax(-1)
    if bool((places == tokens - 1).all()):
        return logits[:, -1]
    return logits[torch.arange(batch), places]


def as_logits(_model: Any, _args: Any, output: Any) -> Any:
    """Forward hook for the stock ``generate``: plain logits that say which entry is the largest and nothing else.

    They are 0 at the revealed index and minus infinity elsewhere, float32, (batch, 1, vocabulary).
    """
    chosen = output["predictions"].unsqueeze(-1)
    plain = torch.full((chosen.shape[0], output["logits"].shape[-1]), -torch.inf)
    output["logits"] = plain.scatter_(-1, chosen, 0.0).unsqueeze(1)
    return output


def check_generation(config: Any, do_sample: bool | None) -> None:
    """Refuse a generation that needs more than the largest logit's index.

    Args:
        config: transformers' GenerationConfig.
        do_sample: The argument of ``generate``, which goes before the config's.

    Raises:
        PolicyError: Sampling, or an option that changes, compares or returns scores.
    """
    where = "generate, policy.outputs='argmax'"
    if config.do_sample if do_sample is None else do_sample:
        raise PolicyError("sampling needs the logits", where=where, fix=f"pass do_sample=False, {_FULL}")
    given = {name for name, value in config.to_diff_dict().items() if value is not None}
    if unknown := sorted(given - _GREEDY):
        what = f"{unknown[0]} may need the logits, of which only the index of the largest is revealed"
        raise PolicyError(what, where=where, fix=f"take it out of the generation config, {_FULL}")


def label_only(pipe: Any) -> None:
    """Make a stock text or image classification pipeline answer with the label alone: ``{"label": …}``, no score.

    Raises:
        PolicyError: On a later call, where an option needs scores (``top_k`` other than 1, ``function_to_apply``).
    """
    labels, listed = pipe.model.config.id2label, pipe.task == "image-classification"

    def postprocess(model_outputs: Any, **options: Any) -> Any:
        asked = {name: value for name, value in options.items() if name != "_legacy" and (name, value) != ("top_k", 1)}
        if asked:
            what = f"{next(iter(asked))} needs scores, of which only the index of the largest is revealed"
            raise PolicyError(what, where="pipeline, policy.outputs='argmax'", fix=f"drop it, {_FULL}")
        answer = {"label": labels[int(model_outputs["predictions"][0])]}
        return [answer] if listed or "top_k" in options else answer

    pipe.postprocess = postprocess
