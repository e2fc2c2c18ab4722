"""Llama (Touvron et al., 2023): the lookup is the client's; a tied head is the server's own copy."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="llama",
    client=("embed_tokens",),
    vocabulary="embed_tokens",
    decoder=True,
)
