"""Token ids of the client, embedding tables of the server: neither learns the other's, and ``explain`` says so.

Run it with ``python examples/private_token_ids.py [PATH_OR_NAME]``: an encoder; without one, a tiny random BERT.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModel, BertConfig, BertModel

import privtensors as pt


def main() -> None:
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        model = AutoModel.from_pretrained(sys.argv[1]).eval()
    else:
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        model = BertModel(BertConfig(vocab_size=5000, **sizes, initializer_range=0.2)).eval()
    ids = torch.tensor([[101, 42, 42, 7, 99, 102]])
    with torch.no_grad():
        plain = model(input_ids=ids).last_hidden_state

    for holder in ("client", "server"):
        private = pt.wrap(model, pt.Policy(infer=[pt.MPC(embeddings=holder)]))
        with private.session.meter.scope() as cost:
            output = private(input_ids=ids).last_hidden_state
        error = (output - plain).abs().max()
        print(f"tables at the {holder}: largest error {error:.4f}, {cost.spent.rounds} rounds, {cost.spent.bytes_sent / 1e3:.0f} kB")
        for row in private.explain().rows:
            if row.asset in ("token ids", "embedding tables"):
                print(f"  {row.party:<7} sees {row.asset:<17} as {row.form}")

    # The same lookup without a model: ordinary torch on a protected table and protected ids.
    table = pt.protect(torch.linspace(-1, 1, 20).view(10, 2), "mpc", owner="server")
    rows = torch.nn.functional.embedding(pt.protect(torch.tensor([9, 0]), "mpc", owner="client"), table)
    print("rows 9 and 0:", pt.reveal(rows, to="client"))
    print("SIMULATED: one process holds every party's view.")


if __name__ == "__main__":
    main()
