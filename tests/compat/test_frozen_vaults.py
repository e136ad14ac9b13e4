"""Vaults of every format version open for ever, and give back every byte and attribute."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.compat.freeze import describe
from tests.conftest import RunCli

VAULTS = sorted((Path(__file__).parents[2] / "fixtures" / "vaults").iterdir())


@pytest.mark.root
@pytest.mark.parametrize("frozen", VAULTS, ids=lambda path: path.name)
def test_a_frozen_vault_gives_everything_back(
    frozen: Path, home: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[str, Any] = json.loads((frozen / "expected.json").read_text())
    monkeypatch.setenv("BACKDRIVE_PASSPHRASE", expected["passphrase"])
    vault = tmp_path / "vault"
    shutil.copytree(frozen / "vault", vault)
    run_cli("register", str(vault), "--machine", "thaw")
    points = run_cli("points", "--json").json
    assert len(points) == len(expected["points"])
    for number, (point, entries) in enumerate(zip(points, expected["points"], strict=True)):
        target = tmp_path / f"restored-{number}"
        done = run_cli("restore", point["id"], expected["root"], "--to", str(target))
        assert done.code == 0, done.stderr
        restored = describe(target / os.path.basename(expected["root"]))
        assert restored.keys() == entries.keys()
        wrong = {path: (restored[path], entry) for path, entry in entries.items() if restored[path] != entry}
        assert not wrong
    assert run_cli("check", "--read-data", "100").code == 0
