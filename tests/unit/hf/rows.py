"""A few made-up reviews as a data set: token ids of one length, a label, and a text that no model takes."""

from __future__ import annotations

from typing import Any

import torch

SIZE = 24


def reviews(size: int = SIZE) -> list[dict[str, Any]]:
    """``size`` examples, the same every time."""
    ids = torch.randint(5, 100, (size, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(7, dtype=torch.int64)
    return [{"input_ids": ids[i], "attention_mask": mask, "label": i % 2, "text": f"review {i}"} for i in range(size)]
