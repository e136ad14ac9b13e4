"""What goes wrong below a drive: damaged packs, a vault that is away, a killed process; and many readers at once."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cas.errors import MountFailed
from mount import drives
from tests.conftest import count_mount, fuse_mounts
from tests.integration.drive_bench import Bench, inside, kill, wait_for

pytestmark = pytest.mark.fuse


def _forget_pages(path: Path) -> None:
    """Have the kernel drop what it has of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read(path: Path) -> bytes | int:
    """A file's bytes, or the errno."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno or 0


def test_a_damaged_pack_is_an_error_of_its_files_only(bench: Bench) -> None:
    make = random.Random(3)
    contents = {f"file {number:02d}": make.randbytes(60_000) for number in range(30)}
    for name, data in contents.items():
        (bench.source / name).write_bytes(data)
    point = bench.backup()
    packs = sorted((bench.vault / "repositories").glob("*/data/*/*"), key=os.path.getsize)
    assert len(packs) > 3
    damaged = packs[-1]
    altered = bytearray(damaged.read_bytes())
    altered[len(altered) // 2] ^= 1
    damaged.chmod(0o600)
    damaged.write_bytes(altered)
    with bench.drive(point) as target:
        mounted = inside(target, bench.source)
        answers = {name: _read(mounted / name) for name in contents}
        broken = {name for name, answer in answers.items() if answer == errno.EIO}
        assert broken and len(broken) < len(contents) // 2
        assert all(answers[name] == contents[name] for name in contents if name not in broken)
        assert {name: _read(mounted / name) for name in contents} == answers
        assert sorted(os.listdir(mounted)) == sorted(contents)
    lines = [line for line in bench.log.read_text().splitlines() if "ERROR" in line]
    for name in broken:
        told = [line for line in lines if os.fspath(mounted / name)[len(os.fspath(target)) :] + ":" in line]
        assert len(told) == 1 and damaged.name in told[0]
    assert len(lines) == len(broken)


def test_a_vault_that_goes_away_comes_back(bench: Bench) -> None:
    data = random.Random(4).randbytes(300_000)
    (bench.source / "file").write_bytes(data)
    (bench.source / "folder").mkdir()
    (bench.source / "folder" / "inner").write_bytes(b"inner")
    with bench.mounted_source() as mounted:
        assert sorted(os.listdir(mounted)) == ["file", "folder"]
        away = bench.root / "away"
        bench.vault.rename(away)
        assert _read(mounted / "file") == errno.EIO
        assert sorted(os.listdir(mounted)) == ["file", "folder"]
        away.rename(bench.vault)
        assert _read(mounted / "file") == data
        assert _read(mounted / "folder" / "inner") == b"inner"
        _forget_pages(mounted / "file")
        assert _read(mounted / "file") == data


def test_a_killed_drive_is_cleaned_up(bench: Bench) -> None:
    (bench.source / "file").write_bytes(b"x")
    point = bench.backup()
    target = bench.root / "drive"
    drives.start(bench.request(point, target))
    count_mount(target)
    kill(bench, target, signal.SIGKILL)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(target)
    (listed,) = drives.list_drives(bench.records)
    assert not listed.alive and listed.target == os.fspath(target)
    with pytest.raises(MountFailed, match="whose process has ended"):
        drives.start(bench.request(point, target))
    drives.stop(target, bench.records)
    assert target not in fuse_mounts() and not target.exists()
    assert drives.list_drives(bench.records) == []
    with bench.drive(point):
        pass


def test_a_terminated_drive_leaves_nothing(bench: Bench) -> None:
    point = bench.backup()
    for number in (signal.SIGTERM, signal.SIGINT):
        target = bench.root / f"drive {number}"
        drives.start(bench.request(point, target))
        count_mount(target)
        kill(bench, target, number)
        assert target not in fuse_mounts() and not target.exists()
        assert drives.list_drives(bench.records) == []


def test_a_terminated_drive_does_not_wait_for_those_who_use_it(bench: Bench) -> None:
    (bench.source / "file").write_bytes(b"x" * 100_000)
    target = bench.root / "drive"
    drives.start(bench.request(bench.backup(), target))
    count_mount(target)
    descriptor = os.open(inside(target, bench.source) / "file", os.O_RDONLY)
    kill(bench, target, signal.SIGTERM)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.pread(descriptor, 10, 0)
    with suppress(OSError):
        os.close(descriptor)  # closing tells the drive, which is gone
    wait_for(lambda: target not in fuse_mounts())


def test_unmounted_by_other_means(bench: Bench) -> None:
    target = bench.root / "drive"
    drives.start(bench.request(bench.backup(), target))
    count_mount(target)
    subprocess.run(["fusermount3", "-u", target], check=True)
    wait_for(lambda: drives.list_drives(bench.records) == [])
    with pytest.raises(MountFailed, match="no drive at"):
        drives.stop(target, bench.records)


_READER = """
import os, random, sys, zlib
root, seed = sys.argv[1], int(sys.argv[2])
chosen = random.Random(seed)
want = dict(line.split() for line in sys.stdin)
names = sorted(want)
for _ in range(60):
    name = chosen.choice(names)
    with open(os.path.join(root, name), 'rb', buffering=0) as file:
        if chosen.random() < 0.5:
            data = b''.join(iter(lambda: file.read(chosen.choice((4096, 70000, 1 << 20))), b''))
            assert zlib.crc32(data) == int(want[name]), name
        else:
            offset = chosen.randrange(os.fstat(file.fileno()).st_size)
            one = os.pread(file.fileno(), 50000, offset)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert one == os.pread(file.fileno(), 50000, offset)
"""


def test_many_readers_at_once_get_the_right_bytes(bench: Bench) -> None:
    import zlib

    make = random.Random(5)
    sums = {}
    for number in range(40):
        data = make.randbytes(make.choice((100, 30_000, 200_000, 1_500_000)))
        (bench.source / f"f{number}").write_bytes(data)
        sums[f"f{number}"] = zlib.crc32(data)
    told = "".join(f"{name} {value}\n" for name, value in sums.items())
    # The cache is much smaller than the data, so that blocks come and go all the time.
    target = bench.root / "drive"
    drives.start(bench.request(bench.backup(), target, cache_bytes=2 << 20))
    count_mount(target)

    def read(seed: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _READER, os.fspath(inside(target, bench.source)), str(seed)]
        return subprocess.run(command, input=told, capture_output=True, text=True, check=False)

    try:
        with ThreadPoolExecutor(6) as pool:
            for done in pool.map(read, range(12)):
                assert done.returncode == 0, done.stderr
    finally:
        drives.stop(target, bench.records)
    assert "ERROR" not in bench.log.read_text()
