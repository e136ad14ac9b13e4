"""`backdrive restore` as a person types it; what it does to files is tested with the task."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.conftest import RunCli


def same(one: Path, two: Path) -> bool:
    done = subprocess.run(
        ["rsync", "-nacHAX", "--delete", "--itemize-changes", f"{one}/", f"{two}/"], capture_output=True, check=True
    )
    return done.stdout == b""


def test_everything_lands_with_full_paths(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, home: Path) -> None:
    done = run_cli("restore", "latest", "--to", tmp_path / "back", expect=0)
    assert done.stdout.startswith("Restored 4 files") and done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert same(tree, Path(f"{tmp_path}/back{tree}"))
    job = json.loads(max((home / "jobs").iterdir(), key=os.path.getmtime).read_bytes())
    assert (job["kind"], job["outcome"], job["point"]) == ("restore", "completed", point)


def test_an_item_lands_as_a_copy_would(run_cli: RunCli, tree: Path, point: str, tmp_path: Path) -> None:
    found = run_cli("restore", point[:8], "sub", "--to", "back", "--verify", "--json", expect=0, cwd=tree).json
    assert same(tree / "sub", tree / "back" / "sub")
    assert (found["point"], found["dry_run"], found["files"], found["warnings"]) == (point, False, 1, [])


def test_back_to_where_it_was(run_cli: RunCli, tree: Path, point: str) -> None:
    (tree / "a.txt").write_text("mine now")
    run_cli("restore", "latest", tree / "a.txt", "--original", "--conflict", "skip", expect=0)
    assert (tree / "a.txt").read_text() == "mine now"
    run_cli("restore", "latest", tree / "a.txt", "--original", expect=0)
    assert len(list(tree.glob("*Copy of a.txt"))) == 1
    run_cli("restore", "latest", tree / "a.txt", "--original", "--conflict", "overwrite", expect=0)
    assert (tree / "a.txt").read_text() == "the first\n"


def test_a_dry_run_writes_nothing(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, home: Path) -> None:
    jobs = len(list((home / "jobs").iterdir()))
    assert run_cli("restore", "latest", "--to", tmp_path / "x", "--dry-run", expect=0).stdout.startswith("Dry run: 4")
    assert not (tmp_path / "x").exists()
    assert len(list((home / "jobs").iterdir())) == jobs


def test_what_cannot_be_restored_or_written(run_cli: RunCli, tree: Path, point: str, tmp_path: Path) -> None:
    run_cli("restore", "latest", "/not/there", "--to", tmp_path / "x", expect=11)
    run_cli("restore", "none", "--to", tmp_path / "x", expect=11)
    (tmp_path / "file").touch()
    run_cli("restore", "latest", "--to", tmp_path / "file" / "below", expect=14)
