"""``python -m privtensors``: the same as the command ``privtensors``."""

from __future__ import annotations

from privtensors.cli import main

if __name__ == "__main__":
    main()
