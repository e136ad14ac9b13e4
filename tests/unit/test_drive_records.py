"""Records of drives, and what they tell of themselves: written by this version, another, or half."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cas.errors import BackdriveError, MountFailed, NoSpace, PathNotFound
from mount.drives import DriveRequest, _error, answer_of, prepare_target
from mount.filters import PointFilter
from mount.records import (
    Counters,
    Drive,
    Publisher,
    boot_id,
    counters_path,
    list_records,
    process_birth,
    read_counters,
    read_record,
    record_path,
    remove_record,
    write_record,
)
from tests.integration.drive_bench import wait_for


def _drive(target: Path, **more: object) -> Drive:
    pid = os.getpid()
    drive = Drive(pid, process_birth(pid) or 0, os.fspath(target), "all", 1, "vault", False, "", boot_id())
    return replace(drive, **more)  # type: ignore[arg-type]


def test_a_record_of_a_living_process_is_listed(tmp_path: Path) -> None:
    drive = _drive(tmp_path / "\udcff odd")
    write_record(tmp_path / "records", drive)
    assert list_records(tmp_path / "records") == [drive] and drive.alive
    remove_record(tmp_path / "records", drive.target)
    assert list_records(tmp_path / "records") == [] == list((tmp_path / "records").iterdir())


def test_records_of_an_earlier_run_of_the_system_are_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "not empty").mkdir()
    (tmp_path / "not empty" / "file").touch()
    for name in ("made", "not empty"):
        # The same process number and the same ticks since boot, as they may well come again.
        write_record(tmp_path / "records", _drive(tmp_path / name, boot="another", made_target=True))
        counters_path(tmp_path / "records", os.fspath(tmp_path / name)).write_text("{}")
    assert list_records(tmp_path / "records") == []
    assert list((tmp_path / "records").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not empty", "records"]


def test_records_of_other_versions_are_read(tmp_path: Path) -> None:
    drive = _drive(tmp_path / "drive")
    write_record(tmp_path, drive)
    path = record_path(tmp_path, drive.target)
    values = asdict(drive)
    path.write_text(json.dumps({**values, "more": ["from", "the future"]}))
    assert read_record(path) == drive
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in ("boot", "shows")}))
    old = read_record(path)
    assert old is not None and old.alive and old.boot == ""


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"3", b"null", b'{"pid": 1}', b"\xff\xfe"])
def test_damaged_files_are_no_records_and_no_counters(tmp_path: Path, damage: bytes) -> None:
    drive = _drive(tmp_path / "drive")
    record_path(tmp_path, drive.target).write_bytes(damage)
    counters_path(tmp_path, drive.target).write_bytes(damage)
    assert read_counters(tmp_path, drive) is None
    assert list_records(tmp_path) == []


def test_counters_are_published_when_they_change_and_belong_to_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.records._PUBLISH_SECONDS", 0.01)
    drive = _drive(tmp_path / "drive")
    now = Counters(requests=3, reads=2, read_bytes=100)
    publisher = Publisher(tmp_path, drive, lambda: now)
    assert read_counters(tmp_path, drive) is None
    publisher.start()
    wait_for(lambda: read_counters(tmp_path, drive) == now)
    written = counters_path(tmp_path, drive.target).stat().st_mtime_ns
    time.sleep(0.1)
    assert counters_path(tmp_path, drive.target).stat().st_mtime_ns == written
    now = Counters(requests=4, errors=1)
    wait_for(lambda: read_counters(tmp_path, drive) == now)
    publisher.close()
    assert read_counters(tmp_path, replace(drive, birth=1)) is None
    path = counters_path(tmp_path, drive.target)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "reads": "many", "more": 1}))
    assert read_counters(tmp_path, drive) == Counters(requests=4, errors=1)


def test_counters_that_cannot_be_written_do_not_end_the_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mount.records._PUBLISH_SECONDS", 0.01)
    drive = _drive(tmp_path / "drive")
    publisher = Publisher(tmp_path / "not there", drive, Counters)
    publisher.start()
    time.sleep(0.05)
    (tmp_path / "not there").mkdir()
    wait_for(lambda: read_counters(tmp_path / "not there", drive) == Counters())
    publisher.close()
    assert [path.suffix for path in (tmp_path / "not there").iterdir()] == [".counters"]


def test_a_request_with_everything_survives_the_pipe(tmp_path: Path) -> None:
    request = DriveRequest(
        vault="file:///v",
        repository="ab",
        secret=bytes(range(32)),
        cache=tmp_path,
        point=None,
        target=tmp_path,
        records=tmp_path,
        log=None,
        folder="/\udcff",
        layout="gmt",
        only=PointFilter(machine="m", tags={"k": "v"}),
        allow_other=True,
        uid=1,
        gid=2,
        umask=0o22,
        cache_bytes=1,
        disk_cache=tmp_path / "disk",
        disk_cache_bytes=5,
    )
    assert DriveRequest.decode(request.encode()) == request


def test_an_error_of_the_drive_is_the_same_error_here() -> None:
    for error in (NoSpace("cache", "/x"), PathNotFound("a" * 32, "/etc"), MountFailed("No.", "Wait.")):
        told = _error(json.loads(json.dumps(answer_of(error))))
        assert type(told) is type(error) and str(told) == str(error)
    assert type(_error({"error": "annotations", "message": "odd"})) is MountFailed
    assert type(_error({"error": "NotOfThisVersion", "message": "odd"})) is MountFailed
    assert isinstance(_error({"error": "BackdriveError"}), BackdriveError)


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/self/fd", "/sys/fs", "/../proc/x"])
def test_targets_of_the_system_are_refused(target: str) -> None:
    with pytest.raises(MountFailed, match="belongs to the system"):
        prepare_target(Path(target))


def test_a_drive_must_not_hide_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "way").symlink_to(tmp_path)
    for target in (tmp_path, tmp_path / "vault", tmp_path / "way"):
        with pytest.raises(MountFailed, match="would hide"):
            prepare_target(target, [tmp_path / "vault"])
    assert prepare_target(tmp_path / "vaults", [tmp_path / "vault"]) == (os.fspath(tmp_path / "vaults"), True)


def test_the_records_are_light_to_import() -> None:
    code = (
        "import sys, mount.drives; print(*{'lmdb', 'blake3', 'msgspec', 'cas.repository', 'trio'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == ""
