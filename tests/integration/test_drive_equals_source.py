"""A drive is what was protected: compared by rsync, by content and every attribute.

The trees are small here. With 50,000 entries, which takes some minutes:

    BACKDRIVE_TEST_ENTRIES=50000 .venv/bin/pytest --timeout 3600 tests/integration/test_drive_equals_source.py
"""

from __future__ import annotations

import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import RunCli, count_mount
from tests.integration.trees import change_tree, copy_tree, differences, make_tree

pytestmark = pytest.mark.fuse

_ENTRIES = int(os.environ.get("BACKDRIVE_TEST_ENTRIES", "2000"))


@pytest.fixture
def source(run_cli: RunCli, passphrase: str, tmp_path: Path) -> Path:
    """A generated tree, and a repository to protect it in."""
    run_cli("vault", "create", tmp_path / "vault", expect=0)
    run_cli("register", tmp_path / "vault", "--machine", "server", expect=0)
    tree = tmp_path / "source"
    tree.mkdir()
    make_tree(tree, _ENTRIES, random.Random(11))
    return tree


def test_a_point_equals_its_source(run_cli: RunCli, source: Path, tmp_path: Path) -> None:
    run_cli("backup", source, expect=0, timeout=1000)
    drive = tmp_path / "drive"
    run_cli("mount", f"latest:{source}", drive, expect=0)
    count_mount(drive)
    assert differences(source, drive) == ""
    listed = subprocess.run(["find", drive, "-printf", "x"], capture_output=True, check=True).stdout
    assert len(listed) == _ENTRIES + 1
    # What finds no difference must be able to find one.
    os.utime(next(source.iterdir()), (1, 1), follow_symlinks=False)
    assert len(differences(source, drive).splitlines()) == 1
    run_cli("unmount", drive, expect=0)


def test_four_points_of_a_changing_tree_at_once(run_cli: RunCli, source: Path, tmp_path: Path) -> None:
    make = random.Random(12)
    states = []
    for number in range(4):
        if number:
            change_tree(source, make)
        run_cli("backup", source, expect=0, timeout=1000)
        states.append(tmp_path / f"state {number}")
        copy_tree(source, states[-1])
    drive = tmp_path / "drive"
    run_cli("mount", drive, expect=0)
    count_mount(drive)
    points = sorted(path for path in (drive / "server").iterdir() if path.name != "latest")
    assert len(points) == 4
    shown = [Path(f"{point}{source}") for point in points]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(differences, states, shown)) == [""] * 4
    assert differences(states[0], shown[1]) != ""
    run_cli("unmount", drive, expect=0)
