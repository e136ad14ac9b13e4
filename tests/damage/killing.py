"""Kills backups at every vault operation and looks at what is left: `python -m tests.damage.killing DIR SHARD SHARDS`.

A process of its own, because it forks. Prints one line for each failure, and last `cases N killed K`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cas.ids import PointId
from cas.repository import pack_of_name, vault_header
from cas.store import pipeline
from cas.store.formats import PackKind
from cas.tasks.check import check
from cas.vault.local import LocalVault
from tests.engine import World, cheap_keys, files_of, files_on_disk, make_world, write_files
from tests.faults import CountingVault, KillingVault, When


@dataclass(frozen=True, slots=True)
class Scene:
    """A repository before a backup: its directory, what its points hold, the source as it is now."""

    name: str
    directory: Path
    world: World
    source: Path
    contents: dict[PointId, dict[bytes, bytes]]
    operations: int  # of the whole backup

    def copy(self, target: Path) -> World:
        """The world in a directory of its own."""
        shutil.copytree(self.directory, target)
        return World(LocalVault(str(target / "vault")), self.world.id, self.world.secret, target / "cache")


def make_scenes(directory: Path) -> Iterator[Scene]:
    """Before a first backup, and before one of many changes."""
    rng = random.Random(5)
    home = directory / "home"
    world = make_world(LocalVault.create(str(home / "vault"), vault_header()), home / "cache")
    source = directory / "source"
    write_files(source, {f"d{i}/f{j}": rng.randbytes(30_000) for i in range(6) for j in range(6)})
    contents: dict[PointId, dict[bytes, bytes]] = {}
    for name in ("first", "later"):
        saved = directory / name
        shutil.copytree(home, saved)
        scene = Scene(name, saved, world, source, dict(contents), 0)
        counting = CountingVault(scene.world.vault)
        expected = files_on_disk(source)
        point = world.backup(source, vault=counting).point
        assert point is not None
        yield Scene(name, saved, world, source, scene.contents, counting.count())
        contents[point.id] = expected
        write_files(source, {f"d{i}/f{i}": rng.randbytes(40_000) for i in range(6)})
        write_files(source, {f"new/{i}": rng.randbytes(50_000) for i in range(12)})


def killed(world: World, source: Path, at: int, when: When) -> bool:
    """Back up in a child that is killed; whether it was before its end."""
    child = os.fork()
    if child == 0:
        try:
            world.backup(source, vault=KillingVault(world.vault, at, when))
        except BaseException as error:  # noqa: BLE001 - the child must not return
            print(f"the backup to be killed failed: {error!r}", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def look(world: World, scene: Scene, fresh: Path) -> None:
    """What must hold after a kill. Raises AssertionError."""
    with world.open(cache=fresh) as repository:
        report = check(repository, 100)
        assert report.ok, report
    point = world.backup(scene.source).point
    assert point is not None
    with world.open() as repository:
        report = check(repository, 100)
        assert report.ok, report
        points = {known.id: known for known in repository.points()}
        reader = repository.reader()
        assert files_of(reader, points.pop(point.id)) == files_on_disk(scene.source)
        for known, contents in scene.contents.items():
            assert files_of(reader, points.pop(known)) == contents
        assert len(points) <= 1  # the killed one, where it came that far
        for left in points.values():
            assert files_of(reader, left) == files_on_disk(scene.source)
    assert_sent_once(world)


def assert_sent_once(world: World) -> None:
    """No chunk is in two packs: what a killed run sent is used by the next one."""
    seen: set[bytes] = set()
    with world.open() as repository:
        for kind in PackKind:
            for entry in repository.vault.list(repository.layout.packs(kind)):
                for block in repository.read_record(pack_of_name(entry.name), entry.name, entry.size).blocks:
                    ids = [block.ids[start : start + 32] for start in range(0, len(block.ids), 32)]
                    assert seen.isdisjoint(ids), "a chunk was sent twice"
                    seen.update(ids)


def main(directory: Path, shard: int, shards: int) -> int:
    patch = pytest.MonkeyPatch()
    cheap_keys(patch)
    patch.setattr(pipeline, "_SEGMENT_PACKS", 3)
    patch.setattr(os, "fsync", lambda descriptor: None)  # a kill is no power cut: that much faster
    cases = kills = failures = 0
    for scene in make_scenes(directory):
        for at in range(1 + shard, scene.operations + 1, shards):
            for when in ("before", "after"):
                target = directory / f"{scene.name}-{at}-{when}"
                world = scene.copy(target)
                cases += 1
                kills += killed(world, scene.source, at, "before" if when == "before" else "after")
                try:
                    look(world, scene, target / "fresh")
                except Exception as error:  # noqa: BLE001 - tell of it, and go on
                    failures += 1
                    print(f"{scene.name} {when} {at}: {error!r}", flush=True)
                shutil.rmtree(target)
    print(f"cases {cases} killed {kills}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
