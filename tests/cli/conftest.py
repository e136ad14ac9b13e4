"""What the tests of the command start from: a small tree with odd names, a vault, and a machine registered with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import RunCli


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A few files, one of whose names is not UTF-8 and one of which would move the cursor."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "a.txt").write_text("the first\n")
    (root / "sub" / "b.txt").write_text("the second\n")
    (root / "sub" / "link").symlink_to("b.txt")
    Path(os.fsdecode(bytes(root) + b"/not \xff utf8")).write_bytes(b"\x00\xff" * 10)
    (root / "red\x1b[31m\nline").write_text("escape")
    return root


@pytest.fixture
def vault(tmp_path: Path, run_cli: RunCli, passphrase: str) -> Path:
    """A vault, with this machine registered as `laptop`."""
    place = tmp_path / "vault"
    run_cli("vault", "create", place, expect=0)
    run_cli("register", place, "--machine", "laptop", expect=0)
    return place


@pytest.fixture
def point(vault: Path, tree: Path, run_cli: RunCli) -> str:
    """The id of a point of `tree`."""
    return str(run_cli("backup", tree, "--json", expect=0).json["point"]["id"])
