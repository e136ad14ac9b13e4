"""How long `backdrive --help` and `backdrive points` take: median of seven runs, interpreter and all.

Run it with `python -m tests.bench.startup`. The aims are 0.2 s and 0.4 s; the figures pass or fail nothing.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RUNS: Final = 7


def _run(*arguments: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "cli.main", *arguments]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT, env=environment)


def _median(*arguments: str, environment: dict[str, str]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        _run(*arguments, environment=environment)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(points: int = 30) -> None:
    """Make a repository with some points, then time the two commands."""
    with tempfile.TemporaryDirectory() as place:
        environment = {
            **os.environ,
            "BACKDRIVE_HOME": f"{place}/home",
            "BACKDRIVE_PASSPHRASE": "only for this measurement",
        }
        source = Path(place, "source")
        source.mkdir()
        _run("vault", "create", f"{place}/vault", environment=environment)
        _run("register", f"{place}/vault", environment=environment)
        for number in range(points):
            (source / f"file {number}").write_text("x" * number)
            _run("backup", str(source), environment=environment)
        print(f"backdrive --help                {_median('--help', environment=environment):.3f} s  (aim 0.2)")
        listing = _median("points", environment=environment)
        print(f"backdrive points, {points:>3} points    {listing:.3f} s  (aim 0.4)")


if __name__ == "__main__":
    main()
