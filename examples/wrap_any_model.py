"""Put a stock Hugging Face model under a policy and compare its private answer with the plain one.

Run it with ``python examples/wrap_any_model.py [PATH_OR_NAME]``: a causal language model; without one, a tiny random GPT-2.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import privtensors as pt


def main() -> None:
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    else:
        config = GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
        model = GPT2LMHeadModel(config).eval()

    private = pt.wrap(model, pt.Policy(infer=["mpc"]))  # the model given stays as it is
    print(private, "is a", type(private.model).__name__, "whose weights print as", next(iter(private.model.lm_head.parameters())))

    ids = torch.tensor([[11, 42, 7, 99, 3]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    output = private(input_ids=ids, output_hidden_states=True)
    print(f"largest logit {plain.abs().max():.2f}, largest error {(output.logits - plain).abs().max():.4f}")
    print("hidden states stay protected:", output.hidden_states[-1])

    tokens = private.generate(ids, max_new_tokens=5, do_sample=False)  # logits are revealed to the client step by step
    print("continued on shares:", tokens[0, 5:].tolist())
    print("SIMULATED: one process holds every party's view.")


if __name__ == "__main__":
    main()
