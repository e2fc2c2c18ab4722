"""Memory of a process that runs protocols: large tensors come and go hundreds of times per request."""

from __future__ import annotations

import ctypes
from typing import Final

_ARENA_MAX: Final = -8
_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next tensor instead of giving each back to the system.

    A fifth of the time of a long sequence goes into page faults otherwise. For processes of our own (the command line, the
    parties of a deployment): it is a setting of the whole process. The peak does not change, but memory stays at it.

    Returns:
        Whether it was done: only glibc has the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26))
    return all([bool(mallopt(name, value)) for name, value in settings])
