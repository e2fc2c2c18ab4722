"""The command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``privtensors``; ends the process with its exit code.

    0: success. 1: an error, or a check that does not hold. 2: the command line is wrong. 130: interrupted.
    """
    try:
        from privtensors.cli.app import app

        app(prog_name="privtensors")
    except KeyboardInterrupt:  # outside any command: while modules are imported
        print("interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # an import that was cut off may leave threads that never end
