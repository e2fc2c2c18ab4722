"""What somebody finds who reads every byte of a server folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from privtensors.obfuscation.keys import ObfuscationKey

FILES = {"config.json", "generation_config.json", "model.safetensors", "privtensors.json"}
_OURS = """privtensors obfuscated model format version role server scheme equivariant key id type architecture weights labels options
pt LABEL transformers float32 float64 bfloat16 true false null"""


def findings(server: Path, model: Any, texts: Iterable[str], key: ObfuscationKey) -> list[str]:
    """What should not be there: files, texts anywhere, the key in any form, words that no stock model of the class has.

    Args:
        server: The folder.
        model: The plain model; its class says which words are stock.
        texts: Label names, paths and the like.
        key: The key.
    """
    files = {path.relative_to(server).as_posix(): path.read_bytes() for path in server.rglob("*") if path.is_file()}
    odd = [f"file {name}" for name in files if name not in FILES]
    secrets = [*(text.encode() for text in texts), key.secret, key.secret.hex().encode(), key.secret.hex().upper().encode()]
    odd += [f"{secret!r} in {name}" for name, content in files.items() for secret in secrets if secret in content]
    from transformers import GenerationConfig

    kind = type(model)
    stock = json.dumps([model.config_class().to_dict(), GenerationConfig().to_dict()])
    known = _words(" ".join([stock, *model.state_dict(), kind.__name__, _OURS]))
    found = _words(b" ".join(content for name, content in files.items() if name.endswith(".json")).decode())
    with safe_open(server / "model.safetensors", "pt") as weights:
        found |= _words(" ".join([*weights.keys(), *(weights.metadata() or {})]))
    return odd + [f"word {word}" for word in sorted(found - known) if not re.fullmatch("[0-9a-f]+", word) and not word.isdigit()]


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text))
