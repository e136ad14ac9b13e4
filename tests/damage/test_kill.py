"""Acceptance 5 of the first issue: kill -9 before and after every vault operation of a backup."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHARDS = 2


def test_killed_anywhere(tmp_path: Path) -> None:
    """Then nothing is broken, the next backup succeeds and sends nothing twice, and every point reads back."""
    running = []
    for shard in range(SHARDS):
        directory = tmp_path / str(shard)
        directory.mkdir()
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.damage.killing", str(directory), str(shard), str(SHARDS)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=100)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
        found = re.search(r"cases (\d+) killed (\d+)\s*\Z", output)
        assert found, output
        cases, kills = int(found[1]), int(found[2])
        assert cases >= 30
        assert kills >= cases * 0.9, output  # threads may need an operation fewer in one run than in another
