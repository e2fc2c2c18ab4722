"""ResNet (He et al., 2016): pixels are shared by the client; batch norms go into their convolutions."""

from __future__ import annotations

from typing import Final

from privtensors.hf.families.base import Family

FAMILY: Final = Family(
    model_type="resnet",
    folds=(("convolution", "normalization"),),
)
