"""ViT (Dosovitskiy et al., 2021): pixels are shared by the client; the patch projection is the server's."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="vit",
)
