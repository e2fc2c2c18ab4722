"""A client in a process of its own that does what it is told in lines of JSON, so that it can be killed at any point.

``connect``, ``ask`` (compares the answer with the plain model), ``close``. The reply says what the caller of the library saw.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from privtensors.core.recorder import MemoryRecorder
from privtensors.core.session import Session
from privtensors.deploy import RemoteModel, connect
from privtensors.deploy import line as line_module
from privtensors.errors import PrivTensorsError

TOKENS = 12


def main() -> None:
    policy, party = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(policy.parent / "model").eval()
    recorder, remote = MemoryRecorder(), None
    ids: list[str] = []
    honest = line_module.new_id

    def noted() -> bytes:
        found = honest()
        ids.append(found.hex())
        return found

    line_module.new_id = noted
    say({"ready": True})
    for line in sys.stdin:
        told = json.loads(line)
        rows, start = len(recorder.entries), time.time()
        reply: dict[str, Any] = {"error": None}
        try:
            if told["do"] == "connect" or (remote is None and told["do"] == "ask"):
                remote = connect(policy, party=party, session=Session(recorder=recorder), timeout=told.get("timeout", 20))
            if told["do"] == "ask":
                assert remote is not None
                reply |= ask(remote, plain, told["seed"])
            if told["do"] == "close" and remote is not None:
                remote.close()
                remote = None
        except PrivTensorsError as error:
            reply |= {"error": type(error).__name__, "text": str(error)}
        reply |= {"ids": ids.copy(), "start": start, "end": time.time(), "rows": len(recorder.entries) - rows}
        ids.clear()
        say(reply)


def ask(remote: RemoteModel, plain: Any, seed: int) -> dict[str, Any]:
    ids = torch.randint(5, 100, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        wrong = float((remote(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max())
    assert remote.last is not None
    return {"wrong": wrong, "seconds": remote.last.seconds, "queue": remote.last.queue_seconds}


def say(reply: dict[str, Any]) -> None:
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
