"""Starting, listing and stopping drives, and the drive that shows every point."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cas.errors import MountFailed, VaultMissing
from mount import drives
from mount.drives import DriveRequest
from tests.conftest import count_mount
from tests.engine import write_files
from tests.integration.drive_bench import Bench, pid_of, wait_for

pytestmark = pytest.mark.fuse

_NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
_SECOND = 1_000_000_000


def test_a_request_survives_the_pipe(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    request = DriveRequest(
        vault="file:///v",
        repository="ab",
        secret=bytes(range(32)),
        cache=odd,
        point=None,
        target=odd,
        records=odd,
        log=None,
    )
    assert DriveRequest.decode(request.encode()) == request
    assert request.secret not in request.encode()


def test_a_drive_is_listed_while_it_lives(bench: Bench) -> None:
    point = bench.backup()
    with bench.drive(point, "with a blank") as target:
        (listed,) = drives.list_drives(bench.records)
        assert (listed.target, listed.point, listed.vault, listed.alive) == (os.fspath(target), point.id, "bench", True)
        assert stat.S_IMODE(bench.records.stat().st_mode) == 0o700
        secret = bench.world.secret
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{listed.pid}/{name}").read_bytes()
            assert secret not in shown and secret.hex().encode() not in shown
        for path in [*bench.records.iterdir(), bench.log]:
            assert secret.hex() not in path.read_text()
    assert drives.list_drives(bench.records) == []
    assert not target.exists()  # it was made for the drive


def test_a_directory_that_was_there_stays(bench: Bench) -> None:
    target = bench.root / "drive"
    target.mkdir()
    (target / "underneath").write_text("x")
    with bench.drive(bench.backup()):
        assert not (target / "underneath").exists()
    assert (target / "underneath").read_text() == "x"


def test_targets_that_cannot_be(bench: Bench) -> None:
    point = bench.backup()
    (bench.root / "file").write_text("x")
    for name, reason in (("file", "is not a directory"), ("no/such", "cannot be made")):
        with pytest.raises(MountFailed, match=reason):
            drives.start(bench.request(point, bench.root / name))
    with bench.drive(point) as target:
        with pytest.raises(MountFailed, match="is a drive already"):
            drives.start(bench.request(point, target))
        os.symlink(target, bench.root / "way")
        with pytest.raises(MountFailed, match="is a drive already"):
            drives.start(bench.request(point, bench.root / "way"))
        assert len(drives.list_drives(bench.records)) == 1
    with pytest.raises(MountFailed, match="no drive at"):
        drives.stop(bench.root / "file", bench.records)


def test_a_vault_that_is_away_is_told(bench: Bench) -> None:
    point = bench.backup()
    bench.vault.rename(bench.root / "away")
    with pytest.raises(VaultMissing, match="There is no vault"):  # told by another process, and of the same class
        drives.start(bench.request(point, bench.root / "drive"))
    assert not (bench.root / "drive").exists()
    assert drives.list_drives(bench.records) == []


def test_a_drive_in_use_says_by_whom(bench: Bench) -> None:
    with bench.drive(bench.backup()) as target:
        user = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=target)
        try:
            with pytest.raises(MountFailed, match=rf"in use by .*{user.pid}"):
                drives.stop(target, bench.records)
            assert drives.list_drives(bench.records)[0].alive
        finally:
            user.kill()
            user.wait()


@pytest.mark.root
def test_a_drive_with_another_file_system_inside_says_which(bench: Bench) -> None:
    write_files(bench.source, {"a folder/file": b"x"})
    with bench.mounted_source() as mounted:
        place = mounted / "a folder"
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
        try:
            with pytest.raises(MountFailed, match="another file system is mounted inside it: ") as refused:
                drives.stop(bench.root / "drive", bench.records)
            assert os.fspath(place) in str(refused.value)
        finally:
            subprocess.run(["umount", place], check=True)


def test_several_drives_at_once(bench: Bench) -> None:
    write_files(bench.source, {"file": b"one"})
    first = bench.backup()
    write_files(bench.source, {"file": b"three"})
    second = bench.backup()
    with bench.drive(first, "first") as one, bench.drive(second, "second") as two:
        name = bench.source.relative_to("/") / "file"
        assert ((one / name).read_bytes(), (two / name).read_bytes()) == (b"one", b"three")
        assert [drive.target for drive in drives.list_drives(bench.records)] == [os.fspath(one), os.fspath(two)]
        assert pid_of(bench, one) != pid_of(bench, two)


def test_in_the_foreground(bench: Bench) -> None:
    """`serve.run` in a process that is told nothing but the request, and ends when it is interrupted."""
    target = bench.root / "drive"
    request = bench.request(bench.backup(), target)
    code = "import sys; from mount import drives, serve; serve.run(drives.DriveRequest.decode(sys.stdin.buffer.read()))"
    root = Path(drives.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=root) as run:
        assert run.stdin is not None
        run.stdin.write(request.encode())
        run.stdin.close()
        wait_for(lambda: len(drives.list_drives(bench.records)) == 1)
        count_mount(target)
        run.terminate()
        assert run.wait(20) == 0
    assert not target.exists()


def test_all_points_and_the_latest(bench: Bench) -> None:
    write_files(bench.source, {"file": b"one"})
    bench.backup(_NOON)
    write_files(bench.source, {"file": b"two!"})
    bench.backup(_NOON)
    place = bench.source.relative_to("/") / "file"
    with bench.drive(None) as target:
        assert os.listdir(target) == ["testbox"]
        machine = target / "testbox"
        assert sorted(os.listdir(machine)) == ["2026-11-22 12.00.00", "2026-11-22 12.00.00 (2)", "latest"]
        versions = {(machine / name / place).read_bytes() for name in os.listdir(machine)}
        assert versions == {b"one", b"two!"}
        newest = os.readlink(machine / "latest")
        assert (machine / newest / place).read_bytes() == (machine / "latest" / place).read_bytes()
        with pytest.raises(OSError, match="Read-only"):
            (machine / "new").mkdir()

        write_files(bench.source, {"file": b"number three"})
        bench.backup(_NOON + 60 * _SECOND)
        wait_for(lambda: os.readlink(machine / "latest") == "2026-11-22 12.01.00")
        assert (machine / "latest" / place).read_bytes() == b"number three"
        assert len(os.listdir(machine)) == 4
        listing = subprocess.run(["ls", "-la", machine], capture_output=True, text=True, check=True).stdout
        assert "latest -> 2026-11-22 12.01.00" in listing


def test_all_points_of_an_empty_repository(bench: Bench) -> None:
    with bench.drive(None) as target:
        assert os.listdir(target) == []
        bench.backup(_NOON)
        wait_for(lambda: os.listdir(target) == ["testbox"])
