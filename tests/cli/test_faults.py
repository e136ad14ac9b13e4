"""Full disks, vaults that cannot be written, two runs at once: the documented code, a message, a sound vault."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.terminal import words
from tests.conftest import ROOT, RunCli


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes a file system of so many MiB."""
    made: list[Path] = []

    def make(name: str, size: int) -> Path:
        place = tmp_path / name
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", place], check=True)
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", "-l", place], check=False)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Not even root can write below it."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> None:
    """Leave no room."""
    with open(place / "ballast", "wb", buffering=0) as ballast:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    ballast.write(os.urandom(size))
            except OSError:
                pass


@pytest.mark.root
def test_a_full_vault(run_cli: RunCli, small_disk: Callable[[str, int], Path], tree: Path, passphrase: str) -> None:
    disk = small_disk("disk", 8)
    run_cli("vault", "create", disk / "vault", expect=0)
    run_cli("register", disk / "vault", expect=0)
    run_cli("backup", tree, expect=0)
    (tree / "big").write_bytes(os.urandom(20 << 20))
    told = words(run_cli("backup", tree, expect=8).stderr)
    assert "No space left for the vault" in told
    assert len(run_cli("points", "--json", expect=0).json) == 1
    run_cli("check", "--read-data", "100", expect=0)
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    run_cli("backup", tree, expect=0)
    run_cli("check", "--read-data", "100", expect=0)


@pytest.mark.root
def test_a_full_home(
    run_cli: RunCli, small_disk: Callable[[str, int], Path], vault: Path, tree: Path, home: Path
) -> None:
    disk = small_disk("disk", 2)
    environment = {"BACKDRIVE_HOME": str(disk / "home")}
    run_cli("register", vault, "--machine", "two", expect=0, env=environment)
    fill(disk)
    assert "No space left" in words(run_cli("backup", tree, expect=8, env=environment).stderr)
    (disk / "ballast").unlink()
    run_cli("backup", tree, expect=0, env=environment)
    run_cli("check", "--read-data", "100", expect=0)


@pytest.mark.root
@pytest.mark.fuse
def test_a_drive_with_a_full_home(
    run_cli: RunCli, small_disk: Callable[[str, int], Path], vault: Path, tree: Path, tmp_path: Path
) -> None:
    disk = small_disk("disk", 2)
    environment = {"BACKDRIVE_HOME": str(disk / "home")}
    run_cli("register", vault, "--machine", "two", expect=0, env=environment)
    run_cli("backup", tree, expect=0, env=environment)
    fill(disk)
    drive = tmp_path / "drive"
    assert "No space left" in words(run_cli("mount", "latest@two", drive, expect=8, env=environment).stderr)
    assert not drive.exists()
    (disk / "ballast").unlink()
    run_cli("mount", "latest@two", drive, expect=0, env=environment)
    run_cli("unmount", drive, expect=0, env=environment)


@pytest.mark.root
def test_a_full_restore_target(
    run_cli: RunCli, small_disk: Callable[[str, int], Path], vault: Path, tree: Path
) -> None:
    (tree / "big").write_bytes(os.urandom(4 << 20))
    run_cli("backup", tree, expect=0)
    disk = small_disk("disk", 2)
    assert "restore target" in words(run_cli("restore", "latest", tree, "--to", disk, expect=8).stderr)


@pytest.mark.root
@pytest.mark.fuse
def test_a_vault_that_cannot_be_written(run_cli: RunCli, vault: Path, tree: Path, point: str, tmp_path: Path) -> None:
    other = {"BACKDRIVE_HOME": str(tmp_path / "other")}
    with read_only(vault):
        assert "cannot be written" in words(run_cli("backup", tree, expect=9).stderr)
        run_cli("register", vault, "--new-repository", expect=9)
        assert "backups need more" in words(run_cli("register", vault, "--machine", "two", expect=0, env=other).stderr)
        for environment in ({}, other):
            assert len(run_cli("points", "--json", expect=0, env=environment).json) == 1
            run_cli("cat", "latest@laptop", tree / "a.txt", expect=0, env=environment)
            run_cli("check", "--read-data", "100", expect=0, env=environment)
        run_cli("restore", "latest@laptop", "--to", tmp_path / "back", expect=0, env=other)
        run_cli("backup", tree, expect=9, env=other)
        run_cli("mount", tmp_path / "drive", expect=0)
        assert Path(f"{tmp_path}/drive/laptop/latest{tree}/a.txt").read_text() == "the first\n"
        run_cli("unmount", tmp_path / "drive", expect=0)
    assert run_cli("backup", tree, "--json", expect=0, env=other).json["point"]["machine"] == "two"
    run_cli("check", expect=0)


def test_two_backups_at_once(run_cli: RunCli, vault: Path, tree: Path) -> None:
    for number in range(200):
        (tree / str(number)).write_bytes(os.urandom(20_000))
    command = [sys.executable, "-m", "cli.main", "backup", str(tree)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(run_cli("points", "--json", expect=0).json) == 2
    run_cli("check", "--read-data", "100", expect=0)
