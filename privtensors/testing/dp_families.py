"""The models of :mod:`privtensors.testing.dp_models`: tiny, random, of the classes that are trained in earnest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privtensors.testing.dp_models import Family

_SIZE: Final = MappingProxyType({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64})
_TEXT: Final = MappingProxyType({**_SIZE, "vocab_size": 100, "max_position_embeddings": 40})
_DRY: Final = MappingProxyType({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


def _transformer(model: str, config: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return cast(nn.Module, getattr(transformers, model)(getattr(transformers, config)(**options)))

    return make


def _bert(head: str = "SequenceClassification", **options: Any) -> Callable[[], nn.Module]:
    return _transformer(f"BertFor{head}", "BertConfig", {**_TEXT, **_DRY, **options})


def _gpt2(head: str = "LMHeadModel") -> Callable[[], nn.Module]:
    size = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 100, "n_positions": 40, "pad_token_id": 0}
    return _transformer(f"GPT2{head}", "GPT2Config", {**size, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})


def _llama(*, tied: bool) -> Callable[[], nn.Module]:
    return _transformer("LlamaForCausalLM", "LlamaConfig", {**_TEXT, "tie_word_embeddings": tied})


def _checkpointed(make: Callable[[], nn.Module], *, reentrant: bool) -> Callable[[], nn.Module]:
    def checkpointed() -> nn.Module:
        model = make()
        newest = getattr(model, "activation_checkpointing_enable", None)  # the older name warns where both exist
        (newest or cast(Any, model).gradient_checkpointing_enable)({"use_reentrant": reentrant})
        return model

    return checkpointed


def _adapted(make: Callable[[], nn.Module], targets: list[str], save: list[str] | None = None) -> Callable[[], nn.Module]:
    """LoRA whose adapters are not zero, so that every gradient is."""

    def adapted() -> nn.Module:
        import warnings

        import peft

        config = peft.LoraConfig(
            r=4, target_modules=targets, modules_to_save=save, lora_dropout=0.0, init_lora_weights=False,
            fan_in_fan_out="c_attn" in targets,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # peft asks transformers for it
            return cast(nn.Module, peft.get_peft_model(cast(Any, make()), config))

    return adapted


def _frozen(make: Callable[[], nn.Module], *parts: str) -> Callable[[], nn.Module]:
    def frozen() -> nn.Module:
        model = make()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in parts))
        return model

    return frozen


def _frozen_statistics(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Batch normalisation as it is fine-tuned under DP: in eval mode, with frozen scale and the statistics of other images."""

    def frozen() -> nn.Module:
        model = make()
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for module in norms:
            module.momentum = 1.0
        with torch.no_grad():
            model.train()(pixel_values=torch.randn(32, 3, 16, 16))
        for module in norms:
            module.requires_grad_(False)
            assert module.running_var is not None
            module.running_var.clamp_(min=1e-3)  # deep in a small random network almost nothing varies
        return model

    return frozen


class _Encoder(nn.Module):
    """torch's own transformer, whose attention owns a raw weight for query, key and value."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(features).mean(1)))


class _Pieces(nn.Module):
    """What checkpoints on a hub do to layers: a bias shared by two weights, a head tied to a layer that is used twice, 1-D positions."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Embedding(12, 32)
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)
        self.second.bias = self.first.bias
        self.third = nn.Linear(32, 32, bias=False)
        self.third.weight = self.first.weight
        self.head = nn.Linear(32, 2)

    def forward(self, features: Tensor) -> Tensor:
        hidden = features + self.position(torch.arange(features.shape[1]))
        hidden = F.gelu(self.first(hidden))
        hidden = self.second(hidden)
        hidden = hidden + self.third(self.third(hidden))
        return cast(Tensor, self.head(torch.tanh(hidden).mean(1)))


class _TwiceTied(nn.Module):
    """An embedding that is used for two inputs and is the head of two outputs, with a padding row."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32, padding_idx=0)
        self.inner = nn.Linear(32, 32)
        self.out = nn.Linear(32, 100)
        self.out.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        from types import SimpleNamespace

        hidden = torch.tanh(self.inner(self.embedding(input_ids) + self.embedding(input_ids.flip(1)).cumsum(1) / 8))
        soft = self.out(hidden).softmax(-1)
        hidden = hidden + soft[..., :32]
        return SimpleNamespace(logits=self.out(hidden * attention_mask[..., None]))


class _Convolutions(nn.Module):
    """A small residual network with group normalisation and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.deep = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(16, 32, 1)
        self.wide = nn.Conv2d(32, 64, 3, dilation=2)
        self.head = nn.Linear(64, 2)

    def forward(self, pixel_values: Tensor) -> Any:
        from types import SimpleNamespace

        hidden = F.relu(self.norm(self.stem(pixel_values)), inplace=True)
        hidden = F.relu(self.point(self.deep(hidden)))
        return SimpleNamespace(logits=self.head(F.relu(self.wide(hidden)).mean((2, 3))))


def all_families() -> Iterator[Family]:
    """Every family, in the order of the tables."""
    yield Family("BERT", _bert())
    yield Family("BERT, embeddings frozen", _frozen(_bert(), "embeddings"))
    yield Family("BERT, biases and head alone", _frozen(_bert(), "weight"))
    yield Family("BERT, checkpointed", _checkpointed(_bert(), reentrant=False))
    yield Family("BERT, checkpointed (reentrant)", _checkpointed(_bert(), reentrant=True))
    yield Family("BERT masked LM, tied", _bert("MaskedLM"), task="language")
    roberta = _transformer("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, **_DRY, "pad_token_id": 1})
    yield Family("RoBERTa, padded", roberta, padding=1)
    yield Family("RoBERTa, padding attended to", roberta, padding=1, masked=False)
    yield Family("DistilBERT", _transformer("DistilBertForSequenceClassification", "DistilBertConfig", {
        "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40,
        "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}))  # fmt: skip
    yield Family("GPT-2", _gpt2("ForSequenceClassification"))
    yield Family("GPT-2 LM, tied", _gpt2(), task="language")
    yield Family("Llama, untied", _llama(tied=False), task="language")
    yield Family("Llama, tied", _llama(tied=True), task="language")
    yield Family("Llama, checkpointed", _checkpointed(_llama(tied=False), reentrant=False), task="language")
    yield Family("ViT", _transformer(
        "ViTForImageClassification", "ViTConfig", {**_SIZE, **_DRY, "image_size": 16, "patch_size": 4}), task="images")  # fmt: skip
    yield Family("ALBERT", _transformer("AlbertForSequenceClassification", "AlbertConfig", {
        **_TEXT, **_DRY, "embedding_size": 16, "classifier_dropout_prob": 0.0}))  # fmt: skip
    yield Family("ModernBERT", _transformer("ModernBertForSequenceClassification", "ModernBertConfig", {
        **_TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}))  # fmt: skip
    yield Family("DeBERTa-v2", _transformer("DebertaV2ForSequenceClassification", "DebertaV2Config", {
        **_TEXT, **_DRY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8,
        "pooler_dropout": 0.0}), engine="loop")  # fmt: skip
    yield Family("T5 encoder", _transformer("T5ForTokenClassification", "T5Config", {
        "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0,
        "num_labels": 100}), task="language", engine="loop")  # fmt: skip
    yield Family("OPT", _transformer("OPTForCausalLM", "OPTConfig", {
        "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "dropout": 0.0,
        "max_position_embeddings": 40, "word_embed_proj_dim": 32, "pad_token_id": 0}), task="language")  # fmt: skip
    yield Family("Swin", _transformer("SwinForImageClassification", "SwinConfig", {
        **_DRY, "image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4,
        "drop_path_rate": 0.0}), task="images", engine="loop")  # fmt: skip
    yield Family("LoRA on BERT", _adapted(_bert(), ["query", "value"], ["classifier"]))
    yield Family("LoRA on GPT-2", _adapted(_gpt2(), ["c_attn"]), task="language")
    yield Family("LoRA on Llama", _adapted(_llama(tied=False), ["q_proj", "v_proj"]), task="language")
    yield Family("nn.TransformerEncoder", _Encoder, task="features")
    mobile = _transformer("MobileNetV2ForImageClassification", "MobileNetV2Config", {
        "image_size": 16, "depth_multiplier": 0.1, "depth_divisible_by": 2, "min_depth": 2, "classifier_dropout_prob": 0.0})  # fmt: skip
    yield Family("MobileNetV2, frozen statistics", _frozen_statistics(mobile), task="images")
    yield Family("ResNet, frozen statistics", _frozen_statistics(_transformer("ResNetForImageClassification", "ResNetConfig", {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"})), task="images")  # fmt: skip
    yield Family("convolutions in groups", _Convolutions, task="images")
    yield Family("shared biases and layers", _Pieces, task="features")
    yield Family("tied and used twice", _TwiceTied, task="language")
