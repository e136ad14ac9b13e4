"""What a drive goes through while it is open: a vault that is away under load, points that are removed, collects."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.lifecycle import DRIVE, Session
from mount import drives
from tests.conftest import count_mount
from tests.engine import write_files
from tests.integration.drive_bench import Bench, inside, wait_for

pytestmark = pytest.mark.fuse

_NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
_MINUTE = 60_000_000_000
_AWAY_SECONDS = 2.0


def _read(path: Path) -> bytes | int:
    """A file's bytes from the drive, not from the kernel's memory; or the errno."""
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.read()
    except OSError as error:
        return error.errno or 0


def _sessions(bench: Bench) -> list[Session]:
    with bench.world.open() as repository:
        names = sorted(entry.name for entry in repository.vault.list(repository.layout.sessions))
        payloads = [repository.get_object(ObjectKind.SESSION, name, cached=False) for name in names]
        return [formats.decode(payload, Session, name) for name, payload in zip(names, payloads, strict=True)]


def test_a_vault_that_is_away_for_a_while_under_load(bench: Bench) -> None:
    make = random.Random(8)
    contents = {f"file {number:02d}": make.randbytes(make.choice((5000, 150_000, 900_000))) for number in range(40)}
    for name, data in contents.items():
        (bench.source / name).write_bytes(data)
    target = bench.root / "drive"
    # Far less memory than data, so that most reads need the vault.
    drives.start(bench.request(bench.backup(), target, cache_bytes=2 << 20))
    count_mount(target)
    mounted = inside(target, bench.source)
    stop = threading.Event()
    wrong: list[tuple[str, int]] = []
    counts = {"read": 0, "EIO": 0}

    def load(seed: int) -> None:
        choose = random.Random(seed)
        while not stop.is_set():
            name = choose.choice(sorted(contents))
            answer = _read(mounted / name)
            if answer == contents[name]:
                counts["read"] += 1
            elif answer == errno.EIO:
                counts["EIO"] += 1
            else:
                wrong.append((name, answer if isinstance(answer, int) else -1))

    try:
        with ThreadPoolExecutor(6) as pool:
            readers = [pool.submit(load, seed) for seed in range(6)]
            try:
                wait_for(lambda: counts["read"] > 20)
                assert counts["EIO"] == 0
                bench.vault.rename(bench.root / "away")
                wait_for(lambda: counts["EIO"] > 20)
                time.sleep(_AWAY_SECONDS)
                (bench.root / "away").rename(bench.vault)
                wait_for(lambda: all(_read(mounted / name) == data for name, data in contents.items()))
                failed = counts["EIO"]
                read = counts["read"]
                wait_for(lambda: counts["read"] > read + 50)
                assert counts["EIO"] - failed <= len(readers)  # at most what was under way then
            finally:
                stop.set()
        assert [reader.exception() for reader in readers] == [None] * len(readers)
        assert wrong == []
        (listed,) = drives.list_drives(bench.records)
        wait_for(lambda: (drives.read_counters(bench.records, listed) or drives.Counters()).errors > 0)
    finally:
        drives.stop(target, bench.records)


def test_a_point_that_is_removed_disappears_and_who_is_in_it_goes_on(bench: Bench) -> None:
    data = random.Random(9).randbytes(3_000_000)
    write_files(bench.source, {"long": data, "folder/inner": b"inner"})
    first = bench.backup(_NOON)
    write_files(bench.source, {"long": b"short now"})
    bench.backup(_NOON + _MINUTE)
    with bench.drive(None) as target:
        machine = target / "testbox"
        old = machine / "2026-11-22 12.00.00"
        place = old / bench.source.relative_to("/")
        opened = os.open(place / "long", os.O_RDONLY)
        folder = os.open(place / "folder", os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert os.pread(opened, 100, 0) == data[:100]
            (removed,) = (bench.vault / "repositories").glob(f"*/points/{first.id}")
            removed.unlink()
            wait_for(lambda: sorted(os.listdir(machine)) == ["2026-11-22 12.01.00", "latest"])
            wait_for(lambda: not old.exists())
            assert not (place / "long").exists()
            assert b"".join(os.pread(opened, 1 << 20, offset) for offset in range(0, len(data), 1 << 20)) == data
            assert os.listdir(folder) == ["inner"]
            inner = os.open("inner", os.O_RDONLY, dir_fd=folder)
            assert os.read(inner, 10) == b"inner"
            os.close(inner)
        finally:
            os.close(opened)
            os.close(folder)
        assert bytes(first.root) in {root for session in _sessions(bench) for root in session.roots}
    assert "ERROR" not in bench.log.read_text()


def test_a_drive_announces_what_it_shows(bench: Bench) -> None:
    write_files(bench.source, {"file": b"one"})
    first = bench.backup(_NOON)
    write_files(bench.source, {"file": b"two"})
    second = bench.backup(_NOON + _MINUTE)

    def announced() -> list[set[bytes]]:
        return [set(session.roots) for session in _sessions(bench) if session.kind == DRIVE]

    assert announced() == []
    with bench.drive(first, "one"):
        assert announced() == [{bytes(first.root)}]
        with bench.drive(None, "all") as target:
            assert {bytes(first.root), bytes(second.root)} in announced()
            write_files(bench.source, {"file": b"three"})
            third = bench.backup(_NOON + 2 * _MINUTE)
            wait_for(lambda: len(os.listdir(target / "testbox")) == 4)
            assert {bytes(first.root), bytes(second.root), bytes(third.root)} in announced()
            assert len(announced()) == 2
    assert announced() == []
