"""`backdrive mount`, `unmount` and `mounts` as a person types them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunCli, fuse_mounts

pytestmark = pytest.mark.fuse

Count = Callable[[Path | None], None]


def test_a_point_as_a_drive(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count) -> None:
    drive = tmp_path / "drive"
    assert run_cli("mounts", "--json", expect=0).json == []
    done = run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    assert str(drive) in done.stdout
    assert Path(f"{drive}{tree}/a.txt").read_text() == "the first\n"
    (found,) = run_cli("mounts", "--json", expect=0).json
    assert (found["target"], found["point"], found["vault"], found["alive"]) == (str(drive), point, "vault", True)
    assert point[:8] in run_cli("mounts", expect=0).stdout
    run_cli("mount", drive, expect=13)
    run_cli("unmount", "drive", expect=0, cwd=tmp_path)
    assert drive not in fuse_mounts()
    assert run_cli("mounts", "--json", expect=0).json == []


def test_all_points_as_a_drive(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    run_cli("mount", drive, expect=0)
    count_mount(drive)
    assert sorted(path.name for path in (drive / "laptop").iterdir())[-1] == "latest"
    assert Path(f"{drive}/laptop/latest{tree}/sub/b.txt").read_text() == "the second\n"
    assert "all points" in run_cli("mounts", expect=0).stdout
    run_cli("unmount", drive, expect=0)
    assert drive.is_dir()


def test_a_drive_whose_process_died_is_cleaned_up(
    run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    os.kill(run_cli("mounts", "--json", expect=0).json[0]["pid"], signal.SIGKILL)
    time.sleep(0.2)
    assert run_cli("mounts", "--json", expect=0).json[0]["alive"] is False
    assert "dead" in run_cli("mounts", expect=0).stdout
    run_cli("unmount", drive, expect=0)
    assert drive not in fuse_mounts()


def test_a_drive_whose_process_hangs_is_cleaned_up_and_knew_no_passphrase(
    run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = tmp_path / "drive"
    monkeypatch.setenv("BACKDRIVE_NEW_PASSPHRASE", "never to be handed on")
    run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    pid = run_cli("mounts", "--json", expect=0).json[0]["pid"]
    assert b"PASSPHRASE" not in Path(f"/proc/{pid}/environ").read_bytes()
    os.kill(pid, signal.SIGSTOP)
    run_cli("unmount", drive, expect=0)
    assert drive not in fuse_mounts()
    deadline = time.monotonic() + 10  # it was killed, which takes a moment
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_drive_in_the_foreground(
    run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count, stop: signal.Signals
) -> None:
    drive = tmp_path / "drive"
    command = [sys.executable, "-m", "cli.main", "mount", "latest", str(drive), "--foreground"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while drive not in fuse_mounts() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        count_mount(drive)
        assert Path(f"{drive}{tree}/a.txt").read_text() == "the first\n"
        process.send_signal(stop)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert drive not in fuse_mounts()


def test_drives_that_cannot_be(run_cli: RunCli, point: str, tmp_path: Path) -> None:
    run_cli("unmount", tmp_path, expect=13)
    (tmp_path / "file").touch()
    run_cli("mount", tmp_path / "file", expect=13)
    run_cli("mount", "none", tmp_path / "drive", expect=11)
    assert not (tmp_path / "drive").exists()
