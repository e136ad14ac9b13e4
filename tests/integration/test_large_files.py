"""Large files, with the parameters of real repositories."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cas.store.parameters import Parameters
from cas.vault.memory import MemoryVault
from tests.engine import cheap_keys, files_of, files_on_disk, make_world

SIZE = 256 << 20
STEP = 8 << 20


@pytest.mark.parametrize("dense", [True, False])
def test_one_byte_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: bool) -> None:
    """Less than 1 % of a large file is stored anew when a byte is put in front of it, whether it compresses or not."""
    cheap_keys(monkeypatch)
    world = make_world(MemoryVault(), tmp_path / "cache", Parameters())
    rng = random.Random(8)
    path = tmp_path / "large"

    def write(front: bytes) -> None:
        rng.seed(8)
        with path.open("wb") as file:
            file.write(front)
            for _ in range(SIZE // STEP):
                data = rng.randbytes(STEP if dense else STEP // 8)
                file.write(data if dense else data.hex().encode() * 4)

    write(b"")
    world.backup(path)
    write(b"!")
    result = world.backup(path)
    assert result.point is not None
    assert result.stats["added_plain"] < SIZE // 100
    assert result.stats["added"] < SIZE // 100
    with world.open() as repository:
        assert files_of(repository.reader(), result.point) == files_on_disk(path)
