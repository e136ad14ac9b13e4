"""A drive with readers on it, while points come and go and their packs are deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import count_mount
from tests.integration.endurance import Endurance


@pytest.mark.usefixtures("home")
def test_readers_notice_nothing_of_backups_deletions_and_collects(tmp_path: Path) -> None:
    outcome = Endurance(tmp_path / "endurance", cache_mib=16).run(seconds=8, readers=4, turns=2, mounted=count_mount)
    assert outcome.reads > 100
    assert outcome.points >= 6
    assert outcome.collected >= 1
