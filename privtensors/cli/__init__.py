"""The command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``privtensors``; ends the process with its exit code.

    0: success. 1: an error, or a check that does not hold. 2: the command line is wrong. 130: interrupted.
    """
    # Idle OpenMP threads spin briefly, then sleep: on a busy machine many small operations are ten times faster so, on an
    # idle one it costs a tenth. Must be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        from privtensors.cli.app import app
        from privtensors.core.allocator import keep_freed_memory

        keep_freed_memory()

        app(prog_name="privtensors")
    except KeyboardInterrupt:  # outside any command: while modules are imported
        print("interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # an import that was cut off may leave threads that never end
