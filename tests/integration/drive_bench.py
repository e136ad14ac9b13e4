"""Real drives for tests: a vault in a directory, backups into it, and mounting what they made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cas.model import Point
from cas.repository import vault_header
from cas.vault.local import LocalVault
from mount import drives
from mount.drives import DriveRequest
from tests.conftest import count_mount, fuse_mounts
from tests.engine import World, cheap_keys, make_world


@dataclass(frozen=True, slots=True)
class Bench:
    """A place for one test's drives."""

    root: Path
    world: World

    @property
    def source(self) -> Path:
        """What is protected."""
        return self.root / "source"

    @property
    def records(self) -> Path:
        return self.root / "drives"

    @property
    def log(self) -> Path:
        return self.root / "logs" / "drive.log"

    @property
    def vault(self) -> Path:
        return self.root / "vault"

    def backup(self, started: int | None = None) -> Point:
        """A point of the source; `started` in ns instead of now."""
        point = self.world.backup(self.source, now=(lambda: started) if started else time.time_ns).point
        assert point is not None
        return point

    def request(self, point: Point | None, target: Path, cache_bytes: int = 32 << 20) -> DriveRequest:
        """What a drive of the point, or of all, is asked for."""
        return DriveRequest(
            vault=os.fspath(self.vault),
            vault_name="bench",
            repository=self.world.id,
            secret=self.world.secret,
            cache=self.world.cache,
            point=None if point is None else point.id,
            target=target,
            records=self.records,
            log=self.log,
            cache_bytes=cache_bytes,
        )

    @contextmanager
    def drive(self, point: Point | None, name: str = "drive") -> Iterator[Path]:
        """Mount for the time of the block; the path where the drive is."""
        target = self.root / name
        drives.start(self.request(point, target))
        try:
            count_mount(target)
            yield target
        finally:
            drives.stop(target, self.records)
        assert target not in fuse_mounts()

    @contextmanager
    def mounted_source(self, point: Point | None = None) -> Iterator[Path]:
        """Back the source up, mount the point; the path of the source inside the drive."""
        with self.drive(point or self.backup()) as target:
            yield inside(target, self.source)


def inside(target: Path, path: Path) -> Path:
    """Where an absolute path is in a drive of one point."""
    return target / path.resolve().relative_to("/")


def make_bench(root: Path) -> Bench:
    """An empty vault and an empty source below `root`."""
    with pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        vault = LocalVault.create(os.fspath(root / "vault"), vault_header())
        world = make_world(vault, root / "cache")
    bench = Bench(root.resolve(), world)
    bench.source.mkdir()
    return bench


def pid_of(bench: Bench, target: Path) -> int:
    """The process that serves a drive."""
    return next(drive.pid for drive in drives.list_drives(bench.records) if drive.target == os.fspath(target))


def kill(bench: Bench, target: Path, number: signal.Signals) -> None:
    """Send a signal to a drive's process and wait until it is gone."""
    pid = pid_of(bench, target)
    birth = drives.process_birth(pid)
    os.kill(pid, number)
    wait_for(lambda: drives.process_birth(pid) != birth)


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is the case."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
