"""What is trained: a model, a batch of made-up token ids, each example's loss. Dropout is off, or no oracle could repeat a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privtensors.testing.assets import minilm_path
from privtensors.testing.dp_models import Trial

Arrays = dict[str, np.ndarray]
_DRY: Final[Mapping[str, Any]] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SMALL: Final[Mapping[str, Any]] = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


@dataclass(frozen=True, slots=True)
class Limits:
    """What our engine must keep to; None: no target.

    Attributes:
        cpu: CPU seconds over those of the non-private step.
        wall: The same of wall seconds.
        ghost: CPU seconds over those of Opacus's ghost clipping.
        memory: Extra peak memory, as a part of the non-private process's peak.
        error: Relative error against the oracle, without noise.
    """

    cpu: float | None = None
    wall: float | None = None
    ghost: float | None = None
    memory: float | None = None
    error: float | None = 1e-5


@dataclass(frozen=True, slots=True)
class Setting:
    """One model and the shape of its batches.

    Attributes:
        name: For ``--settings``.
        title: For the table.
        make: Builds the model; the same weights every time.
        task: Classify the whole text, or predict each next token.
        examples: In a batch.
        tokens: Of the longest example.
        vocabulary: Ids are below it.
        first: Ids from here on are drawn; smaller ones are special.
        limits: What our engine must keep to.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    task: Literal["classify", "language"]
    examples: int
    tokens: int
    vocabulary: int
    first: int
    limits: Limits = Limits()

    def batch(self, seed: int = 0) -> Arrays:
        """Ids drawn log-uniformly, so that some are frequent and most are rare, as in text; classified texts are half to fully as long.

        Returns:
            ``input_ids`` and ``attention_mask``, int64, (examples, tokens); ``labels``, int64, (examples,), where texts are classified.
        """
        random = np.random.default_rng(seed)
        ids = (self.vocabulary ** random.random((self.examples, self.tokens))).astype(np.int64)
        ids = ids.clip(self.first, self.vocabulary - 1)
        mask = np.ones_like(ids)
        if self.task == "language":
            return {"input_ids": ids, "attention_mask": mask}
        lengths = random.integers(self.tokens // 2, self.tokens, self.examples, endpoint=True)
        lengths[0] = self.tokens
        mask[np.arange(self.tokens) >= lengths[:, None]] = 0
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": random.integers(0, 2, self.examples)}

    def model(self) -> nn.Module:
        """The model, in training mode."""
        torch.manual_seed(0)
        return self.make().train()

    def trial(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Trial:
        """``model`` with a batch and its loss."""
        losses = classify(model) if self.task == "classify" else language(model)
        return Trial(self.name, model, batch, lambda b: losses(b).mean(), losses, len(batch["input_ids"]))


Losses = Callable[[Mapping[str, Any]], Tensor]


def classify(model: nn.Module) -> Losses:
    """The loss of each example, (examples,)."""

    def losses(batch: Mapping[str, Any]) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits, batch["labels"], reduction="none")

    return losses


def language(model: nn.Module) -> Losses:
    """The loss of each example's next tokens, averaged over them, (examples,)."""

    def losses(batch: Mapping[str, Any]) -> Tensor:
        ids = batch["input_ids"]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
        each = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none")
        return each.view(len(ids), -1).mean(1)

    return losses


def minilm() -> nn.Module:
    """MiniLM with its real weights, 22.7M parameters, and a new head."""
    from transformers import BertForSequenceClassification, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return cast(nn.Module, BertForSequenceClassification.from_pretrained(minilm_path(), num_labels=2, **_DRY))


def adapted() -> nn.Module:
    """MiniLM with LoRA of rank 8 on query and value, not zero at first, and its head."""
    import peft

    options = peft.LoraConfig(
        r=8, target_modules=["query", "value"], modules_to_save=["classifier"], lora_dropout=0.0, init_lora_weights=False
    )
    return cast(nn.Module, peft.get_peft_model(cast(Any, minilm()), options))


def gpt2() -> nn.Module:
    """A GPT-2 of 4 layers and width 256 with the real vocabulary, its head tied to the embedding; random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    dry: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=256, n_head=4, vocab_size=50_257, use_cache=False, **dry))


def deberta() -> nn.Module:
    """A DeBERTa-v2 of MiniLM's size, which uses weights outside their modules; random weights."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    relative: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 32}
    return DebertaV2ForSequenceClassification(DebertaV2Config(vocab_size=30_522, pooler_dropout=0.0, **_SMALL, **_DRY, **relative))


def smoke() -> nn.Module:
    """A BERT that takes milliseconds."""
    from transformers import BertConfig, BertForSequenceClassification

    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=500, **small, **_DRY))


_FULL: Final = Limits(cpu=1.3, wall=1.4, ghost=0.70, memory=0.10)

SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            Setting("minilm-64", "MiniLM (22.7M), full fine-tune", minilm, "classify", 16, 64, 30_522, 1000, _FULL),
            Setting("minilm-128", "MiniLM (22.7M), full fine-tune", minilm, "classify", 16, 128, 30_522, 1000, _FULL),
            Setting("gpt2", "GPT-2 4 x 256, tied head", gpt2, "language", 16, 64, 50_257, 0, Limits(cpu=1.15)),
            Setting("lora", "MiniLM, LoRA r = 8 on q and v, and head", adapted, "classify", 16, 64, 30_522, 1000, Limits(cpu=1.08)),
            Setting("deberta", "DeBERTa-v2 6 x 384, needs the loop", deberta, "classify", 16, 64, 30_522, 1000),
            Setting("smoke", "BERT 2 x 32, a test of the benchmark", smoke, "classify", 8, 16, 500, 3),
        )
    }
)
"""By name, in the order of the tables. ``smoke`` runs only where it is asked for."""
