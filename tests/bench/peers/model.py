"""MiniLM with its real weights as plain arrays, and real inputs for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from privtensors.testing.assets import minilm_path, movie_reviews, split_reviews
from tests.bench.peers.contender import Request


class PlainModel:
    """The encoder, without the pooler, in this process: the reference of all errors."""

    def __init__(self) -> None:
        path = minilm_path()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path, add_pooling_layer=False).eval()

    def weights(self) -> dict[str, np.ndarray]:
        """Per layer, input dimension first; query, key and value side by side, the query scaled by 1/sqrt(head width).

        Both save a peer work without changing the model.
        """
        config, state = self.model.config, self.model.state_dict()
        scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        weights = {}
        for i in range(config.num_hidden_layers):

            def of(name: str, i: int = i) -> torch.Tensor:
                found: torch.Tensor = state[f"encoder.layer.{i}.{name}"]
                return found

            qkv = [(of(f"attention.self.{n}.weight").T, of(f"attention.self.{n}.bias")) for n in ("query", "key", "value")]
            qkv[0] = (qkv[0][0] * scale, qkv[0][1] * scale)
            weights.update(
                {
                    f"{i}.qkv.w": torch.cat([w for w, _ in qkv], 1),
                    f"{i}.qkv.b": torch.cat([b for _, b in qkv]),
                    f"{i}.out.w": of("attention.output.dense.weight").T,
                    f"{i}.out.b": of("attention.output.dense.bias"),
                    f"{i}.norm1.w": of("attention.output.LayerNorm.weight"),
                    f"{i}.norm1.b": of("attention.output.LayerNorm.bias"),
                    f"{i}.up.w": of("intermediate.dense.weight").T,
                    f"{i}.up.b": of("intermediate.dense.bias"),
                    f"{i}.down.w": of("output.dense.weight").T,
                    f"{i}.down.b": of("output.dense.bias"),
                    f"{i}.norm2.w": of("output.LayerNorm.weight"),
                    f"{i}.norm2.b": of("output.LayerNorm.bias"),
                }
            )
        return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in weights.items()}

    def shape(self) -> dict[str, Any]:
        """What a worker must know beside the weights."""
        config = self.model.config
        return {"layers": config.num_hidden_layers, "heads": config.num_attention_heads, "eps": config.layer_norm_eps}

    def requests(self, tokens: int, count: int) -> list[Request]:
        """Held-out reviews of at least ``tokens`` tokens, cut to exactly that many."""
        found: list[Request] = []
        for review in split_reviews(movie_reviews()).test:
            ids = self.tokenizer(review.text, return_tensors="pt", truncation=True, max_length=tokens)["input_ids"]
            if ids.shape[1] == tokens:
                with torch.inference_mode():
                    hidden = self.model.embeddings(ids)
                    reference = self.model(input_ids=ids).last_hidden_state
                found.append(Request(ids.numpy(), hidden.numpy(), reference.numpy()))
            if len(found) == count:
                return found
        raise SystemExit(f"fewer than {count} held-out reviews have {tokens} tokens")
