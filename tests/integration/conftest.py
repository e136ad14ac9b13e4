"""Fixtures for tests over real files, real vaults and real mounts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import fuse_mounts
from tests.integration.drive_bench import Bench, make_bench


@pytest.fixture
def bench(home: Path, tmp_path: Path) -> Iterator[Bench]:
    """A vault, a source, and drives; whatever is left mounted is unmounted (by the fixture `home`)."""
    yield make_bench(tmp_path)
    assert not [mount for mount in fuse_mounts() if mount.is_relative_to(tmp_path)], "the test left a drive behind"
