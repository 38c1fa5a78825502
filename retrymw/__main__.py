"""``python -m retrymw``."""

from __future__ import annotations

from retrymw.cli import main

if __name__ == "__main__":
    main(prog_name="python -m retrymw")
