"""Kills collects and deletions at every vault operation: `python -m tests.damage.killing_collect DIR SHARD SHARDS`.

A process of its own, because it forks. Prints one line for each failure, and last `cases N killed K`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from cas.ids import PointId
from cas.repository import Problems, Repository, list_packs, vault_header
from cas.tasks.announce import DAY, HOUR
from cas.tasks.check import check
from cas.tasks.collect import CollectRequest, collect
from cas.tasks.delete import delete_points, undelete_points
from cas.tasks.deleted import deleted_points
from cas.vault.base import Vault
from cas.vault.local import LocalVault
from tests.engine import World, cheap_keys, files_of, files_on_disk, make_world, write_files
from tests.faults import CountingVault, KillingVault, When

_NOW: Final = time.time_ns() + HOUR


@dataclass(frozen=True, slots=True)
class Scene:
    """A repository, something to do with it, and the points that must come through it whole."""

    name: str
    directory: Path
    world: World
    work: Callable[[Repository], object]
    contents: dict[PointId, dict[bytes, bytes]]
    undecided: dict[PointId, dict[bytes, bytes]]  # points that are there before, and may be deleted after

    def copy(self, target: Path) -> World:
        """The world in a directory of its own."""
        shutil.copytree(self.directory, target)
        return World(LocalVault(str(target / "vault")), self.world.id, self.world.secret, target / "cache")

    def run(self, world: World, vault: Vault | None = None) -> None:
        with world.open(vault) as repository:
            self.work(repository)


def collected(repository: Repository, now: int = _NOW) -> None:
    """A collect that does all it can at once."""
    report = collect(repository, CollectRequest(machine="0" * 32, max_unused=0, grace=0), lambda: now)
    assert not report.problems, report


def deleted(repository: Repository, point: PointId, *, purge_now: bool) -> None:
    points = [known for known in repository.points() if known.id == point]
    delete_points(repository, points, lambda: _NOW, purge_now=purge_now)


def make_scenes(directory: Path) -> list[Scene]:
    """A collect after two points of five were purged, one deletion, one taking back."""
    rng = random.Random(7)
    home = directory / "home"
    world = make_world(LocalVault.create(str(home / "vault"), vault_header()), home / "cache")
    source = directory / "source"
    contents: dict[PointId, dict[bytes, bytes]] = {}
    for turn in range(5):
        write_files(source, {f"d{i}/f{i + turn}": rng.randbytes(20_000) for i in range(5)})
        write_files(source, {f"of-turn/{turn}": rng.randbytes(60_000)})
        shutil.rmtree(source / f"d{turn}")
        point = world.backup(source).point
        assert point is not None
        contents[point.id] = files_on_disk(source)
    ids = list(contents)

    def scene(
        name: str, work: Callable[[Repository], object], undecided: list[PointId], purged: list[PointId]
    ) -> Scene:
        saved = directory / name
        shutil.copytree(home, saved)
        kept = {point: files for point, files in contents.items() if point not in (*undecided, *purged)}
        return Scene(name, saved, world, work, kept, {point: contents[point] for point in undecided})

    def taken_back(repository: Repository) -> None:
        gone = [known.point for known in deleted_points(repository, Problems()) if known.point.id == ids[1]]
        undelete_points(repository, gone)

    scenes = [scene("delete", lambda repository: deleted(repository, ids[0], purge_now=False), ids[:1], [])]
    with world.open() as repository:
        deleted(repository, ids[0], purge_now=True)
        deleted(repository, ids[2], purge_now=True)
    scenes.append(scene("collect", collected, [], [ids[0], ids[2]]))
    with world.open() as repository:
        deleted(repository, ids[1], purge_now=False)
    scenes.append(scene("undelete", taken_back, ids[1:2], [ids[0], ids[2]]))
    return scenes


def killed(scene: Scene, world: World, at: int, when: When) -> bool:
    """Do the work in a child that is killed; whether it was before its end."""
    child = os.fork()
    if child == 0:
        try:
            scene.run(world, KillingVault(world.vault, at, when))
        except BaseException as error:  # noqa: BLE001 - the child must not return
            print(f"{scene.name} to be killed failed: {error!r}", flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def look(scene: Scene, world: World, fresh: Path) -> None:
    """What must hold after a kill, and after another collect. Raises AssertionError."""
    for turn in range(2):
        with world.open(cache=fresh) as repository:
            report = check(repository, 100)
            assert report.ok, report
            points = {known.id: known for known in repository.points()}
            gone = {known.point.id: known.point for known in deleted_points(repository, Problems())}
            reader = repository.reader()
            for known, files in {**scene.contents, **scene.undecided}.items():
                assert (known in points) != (known in gone), "a point is nowhere, or in two places"
                assert known in points or known in scene.undecided or known in scene_deleted(scene)
                assert files_of(reader, {**gone, **points}[known]) == files
        if turn == 0:
            with world.open() as repository:  # with the cache of the run that was killed
                collected(repository, _NOW + 3 * DAY)
                collected(repository, _NOW + 6 * DAY)
                assert_nothing_left(repository)


def scene_deleted(scene: Scene) -> set[PointId]:
    """Points that were deleted, and not purged, before the scene."""
    with scene.world.open(LocalVault(str(scene.directory / "vault")), scene.directory / "cache") as repository:
        return {known.point.id for known in deleted_points(repository, Problems())}


def assert_nothing_left(repository: Repository) -> None:
    """Every pack is needed, and named once."""
    report = collect(repository, CollectRequest(machine="0" * 32, max_unused=0, dry_run=True), lambda: _NOW + 9 * DAY)
    assert (report.condemned, report.unused, report.waiting) == (0, 0, []), report
    named = [
        record.id
        for entry in repository.vault.list(repository.layout.index)
        for record in repository.segment(entry.name)
    ]
    assert sorted(named) == sorted(pack for _, pack, _ in list_packs(repository))
    for prefix in (repository.layout.condemned, repository.layout.sessions):
        assert [*repository.vault.list(prefix)] == []


def main(directory: Path, shard: int, shards: int) -> int:
    patch = pytest.MonkeyPatch()
    cheap_keys(patch)
    patch.setattr(os, "fsync", lambda descriptor: None)  # a kill is no power cut: that much faster
    cases = kills = failures = number = 0
    for scene in make_scenes(directory):
        counting = CountingVault(scene.copy(directory / "counted").vault)
        scene.run(World(counting, scene.world.id, scene.world.secret, directory / "counted/cache"))
        shutil.rmtree(directory / "counted")
        # Reading changes nothing, so that a kill before it is like one after the write before it.
        writes = [at for at, done in enumerate(counting.operations, 1) if done.op in ("put", "delete")]
        for at in writes:
            for when in ("before", "after"):
                number += 1
                if number % shards != shard:
                    continue
                target = directory / f"{scene.name}-{at}-{when}"
                world = scene.copy(target)
                cases += 1
                kills += killed(scene, world, at, "before" if when == "before" else "after")
                try:
                    look(scene, world, target / "fresh")
                except Exception as error:  # noqa: BLE001 - tell of it, and go on
                    failures += 1
                    print(f"{scene.name} {when} {at}: {error!r}", flush=True)
                shutil.rmtree(target)
    print(f"cases {cases} killed {kills}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
