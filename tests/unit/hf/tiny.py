"""Tiny random models of every family, with weights large enough that their logits say something."""

from __future__ import annotations

from typing import Any

import torch

TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
}
GPT2_SIZES: dict[str, Any] = {
    "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
DISTIL_SIZES: dict[str, Any] = {"vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 0}
VIT_SIZES: dict[str, Any] = {k: v for k, v in TEXT_SIZES.items() if not k.endswith(("vocab_size", "token_id"))} | {
    "image_size": 32,
    "patch_size": 8,
}

TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT_SIZES),
    "bert-base": ("BertModel", "BertConfig", TEXT_SIZES),
    "bert-qa": ("BertForQuestionAnswering", "BertConfig", TEXT_SIZES),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", TEXT_SIZES),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL_SIZES),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT_SIZES | {"pad_token_id": 1}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2_SIZES),
    "gpt2-classifier": ("GPT2ForSequenceClassification", "GPT2Config", GPT2_SIZES),
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT_SIZES | {"num_key_value_heads": 2}),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", TEXT_SIZES | {"tie_word_embeddings": True}),
}
VISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", VIT_SIZES),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"image_size": 32, "depth_multiplier": 0.35}),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}),
}
CAUSAL = ("gpt2", "llama", "llama-tied")


def build(name: str, attention: str | None = None, **more: Any) -> Any:
    """The model ``name``, in evaluation mode, the same weights every time; batch norms have statistics of their own."""
    import transformers

    class_name, config_name, sizes = (TEXT | VISION)[name]
    extra = more | ({"attn_implementation": attention} if attention else {})
    config = getattr(transformers, config_name)(**sizes, initializer_range=0.2, **extra)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.25, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def text_inputs(name: str, *, left: bool = False) -> dict[str, torch.Tensor]:
    """Two sequences of seven tokens, the second padded by two."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (2, 7), generator=generator)
    mask = torch.ones(2, 7, dtype=torch.long)
    padding = slice(0, 2) if left else slice(5, 7)
    ids[1, padding] = TEXT[name][2]["pad_token_id"]
    mask[1, padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def pixel_inputs() -> dict[str, torch.Tensor]:
    """Two images of 32 by 32."""
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))}


def inputs_for(name: str) -> dict[str, torch.Tensor]:
    """Plain inputs that suit ``name``."""
    return text_inputs(name) if name in TEXT else pixel_inputs()
