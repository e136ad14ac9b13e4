"""Fixtures of the engine's unit tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from cas.vault.memory import MemoryVault
from tests.engine import World, cheap_keys, make_world


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A small repository in memory, with a machine and its cache."""
    cheap_keys(monkeypatch)
    return make_world(MemoryVault(), tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory to protect."""
    path = tmp_path / "source"
    path.mkdir()
    return path
