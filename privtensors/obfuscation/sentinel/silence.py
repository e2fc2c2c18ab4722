"""transformers reports every head that is not in a checkpoint, and draws bars; here a missing head is what fine-tuning starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Only errors of ``transformers`` are logged, and it draws no bars; both are put back at the end."""
    from transformers.utils import logging as reports

    logging: Any = reports
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
