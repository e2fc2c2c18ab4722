"""``python -m tests.bench NAME …``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def main() -> int:
    known = {p.stem.replace("_", "-"): p.stem for p in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(f"usage: python -m tests.bench {{{','.join(known)}}} [options]", file=sys.stderr)
        return 2
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does, for plain and private alike
    importlib.import_module(f"tests.bench.{known[sys.argv[1]]}").main(sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
