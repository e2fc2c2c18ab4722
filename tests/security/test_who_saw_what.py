"""What crossed between the parties during a wrapped model's forward, against what ``explain()`` says they see."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

from privtensors import MPC, Policy, Session, wrap
from privtensors.backends.mpc.backend import MPCBackend
from privtensors.core.recorder import MemoryRecorder
from privtensors.policy.assets import Asset
from privtensors.policy.forms import Plaintext
from privtensors.transport.memory import MemoryChannel
from privtensors.transport.record import RecordingChannel, Tape

SHAPE = (1, 3)  # of the logits; no other tensor of this model has it


def test_the_server_gets_no_result_and_no_id_and_the_client_gets_one_share_of_the_result() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, num_labels=SHAPE[1]
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 90, (1, 11))
    tape = Tape()
    with Session(recorder=MemoryRecorder()) as session:
        backend = session.backend(MPC())
        assert isinstance(backend, MPCBackend)
        backend.runtime.channel = RecordingChannel(MemoryChannel(), tape)
        private = wrap(model, Policy(infer=[MPC()]))
        before = len(tape.entries)
        logits = private(input_ids=ids).logits
        said = private.explain()

    received = {party: [e for e in tape.entries[before:] if e.party == party and not e.sent] for party in ("party0", "party1")}
    results = {party: [e for e in entries if e.shape == SHAPE and e.bits == 64] for party, entries in received.items()}
    # The client: plaintext outputs, says explain(). The last words on the wire are the server's share of them, and go one way.
    assert Plaintext() in said.view("client")[Asset.OUTPUTS]
    assert received["party0"][-1] is results["party0"][-1]
    # The server: no plaintext outputs, says explain(). What it got of that shape opened under masks, one message less.
    assert Plaintext() not in said.view("server")[Asset.OUTPUTS]
    assert len(results["party1"]) == len(results["party0"]) - 1
    # Neither ids nor logits nor embedding rows, in the form they have in plain or in fixed point, lie in what the server got.
    rows = model.bert.embeddings(ids).detach()
    secrets = [ids, *(torch.round(x.double() * 2.0**18).to(torch.int64) for x in (logits, rows))]
    wanted = {int(w) for s in secrets for w in s.flatten() if abs(int(w)) > 1000} | {int(w) for w in ids.flatten()}
    wide = [e for e in received["party1"] if e.bits == 64]
    assert len(wide) > 10
    for entry in wide:
        words = torch.frombuffer(bytearray(entry.data), dtype=torch.int64)
        assert not wanted & set(words.tolist())
