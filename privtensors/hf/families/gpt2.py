"""GPT-2 (Radford et al., 2019): both lookups are the client's; a tied head is the server's own copy."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="gpt2",
    client=("wte", "wpe"),
    vocabulary="wte",
    positions="wpe",
    decoder=True,
)
