"""MobileNetV2 (Sandler et al., 2018): pixels are shared by the client; batch norms go into their convolutions."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="mobilenet_v2",
    folds=(("convolution", "normalization"),),
)
