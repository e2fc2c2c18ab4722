"""One party: reads requests from its socket, computes on its shares with CrypTen, answers. Started by ``workers.py``.

    python party.py RANK FOLDER PROVIDER FD     rank 0 and 1 compute; rank 2 is the trusted third party (PROVIDER TTP only)
    python party.py check                       import CrypTen and print the versions found, as JSON

A reply never carries text of an exception, only its type and the place: a message could quote a value.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I leaves it out
import standins


def main(argv: list[str]) -> int:
    if argv == ["check"]:
        crypten = standins.import_crypten()
        import torch

        print(json.dumps({"crypten": crypten.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}))
        return 0
    rank, folder, provider = int(argv[0]), argv[1], argv[2]
    os.environ.update(
        WORLD_SIZE="2",
        RANK=str(rank),
        RENDEZVOUS=f"file://{folder}/rendezvous",
        DISTRIBUTED_BACKEND="gloo",
        GLOO_SOCKET_IFNAME=next(name for _, name in socket.if_nameindex() if name.startswith("lo")),  # never another interface
    )
    crypten = standins.import_crypten()
    crypten.config.cfg.mpc.provider = provider
    crypten.config.cfg.communicator.verbose = True  # counts rounds and bytes
    if rank == 2:
        crypten.mpc.provider.TTPServer()
        return 0
    crypten.init()
    _serve(crypten, socket.socket(fileno=int(argv[3])))
    return 0


def _serve(crypten: Any, link: socket.socket) -> None:
    import torch
    from frames import Closed, pack, receive, send
    from rows import held, run

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    store: dict[int, Any] = {}
    stats = crypten.communicator.get()
    send(link, pack({"ok": True, "rank": stats.get_rank()}), None)
    while True:
        try:
            request, tensors = receive(link, None)
        except (Closed, OSError):
            return  # the session is gone
        for number in request.get("drop", ()):
            store.pop(number, None)
        verb, before = request["verb"], (stats.comm_rounds, stats.comm_bytes)
        reply: dict[str, Any] = {"ok": True}
        body: dict[str, Any] = {}
        try:
            with torch.no_grad():
                if verb == "load":
                    store[request["out"][0]] = held(tensors["share"], request["scale"])
                elif verb == "run":
                    args = [_operand(a, tensors, store) for a in request["args"]]
                    found = run(request["row"], args, request["kwargs"])
                    store.update(zip(request["out"], found, strict=True))
                    reply["shapes"] = [list(x.share.shape) for x in found]
                elif verb == "give":
                    value = store[request["held"]]
                    body["share"], reply["scale"] = value.share.clone(), value.encoder.scale
                else:
                    raise KeyError(verb)
        except Exception as error:  # reported, and the session ends both parties: they may be out of step
            place = traceback.extract_tb(error.__traceback__)[-1]
            reply = {"ok": False, "error": f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}"}
        reply["rounds"] = stats.comm_rounds - before[0]
        reply["bytes"] = int(stats.comm_bytes - before[1]) // 2  # CrypTen counts what a party sends and what it receives
        send(link, pack(reply, body), None)


def _operand(text: Any, tensors: dict[str, Any], store: dict[int, Any]) -> Any:
    if isinstance(text, list):
        return [_operand(a, tensors, store) for a in text]
    if isinstance(text, dict):
        return store[text["held"]] if "held" in text else tensors[text["tensor"]]
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
