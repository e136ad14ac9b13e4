"""What a collect does, waits for, and leaves alone."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from cas.errors import BackupOverdue, Damaged, InvalidRequest, PointNotFound, VaultReadOnly
from cas.ids import PackId, PointId
from cas.model import Point
from cas.repository import Problems, Repository, list_packs
from cas.store.formats import PackKind
from cas.store.layout import new_id
from cas.store.lifecycle import BACKUP, DRIVE
from cas.tasks.announce import DAY, HOUR, Announcement, announce_backup, still_there
from cas.tasks.check import check
from cas.tasks.collect import CollectReport, CollectRequest, collect
from cas.tasks.collect_plan import PackUse, make_plan
from cas.tasks.delete import delete_points, undelete_points
from cas.tasks.deleted import deleted_points
from tests.engine import World, files_of, files_on_disk, write_files
from tests.faults import Fault, FaultyVault

RNG = random.Random(11)
NOW = 1_900_000_000_000_000_000


class Clock:
    """Goes when it is told to."""

    now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(repository: Repository, clock: Clock, grace: int = 0, max_unused: float = 0, **more: object) -> CollectReport:
    request = CollectRequest(machine="0" * 32, max_unused=max_unused, grace=grace, **more)  # type: ignore[arg-type]
    return collect(repository, request, clock)


def fill(world: World, source: Path, clock: Clock, turns: int = 3) -> list[Point]:
    """Points of which each has a file that the others have not."""
    found = []
    for turn in range(turns):
        shutil.rmtree(source / "turn", ignore_errors=True)
        write_files(source, {f"turn/{turn}": RNG.randbytes(100_000), f"all/{turn}": RNG.randbytes(30_000)})
        point = world.backup(source, now=clock).point
        assert point is not None
        found.append(point)
        clock.now += HOUR
    return found


def purge(repository: Repository, clock: Clock, *points: Point) -> None:
    delete_points(repository, points, clock, purge_now=True)


def test_nothing_to_do_changes_nothing(world: World, source: Path, clock: Clock) -> None:
    fill(world, source, clock)
    with world.open() as repository:
        before = sorted(pack for _, pack, _ in list_packs(repository))
        report = run(repository, clock)
        assert (report.points, report.condemned, report.freed, report.unused) == (3, 0, 0, 0)
        assert sorted(pack for _, pack, _ in list_packs(repository)) == before


def test_two_phases(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository:
        purge(repository, clock, points[0])
        size = sum(size for _, _, size in list_packs(repository))
        first = run(repository, clock, HOUR)
        assert first.condemned > 0 and first.freed == 0 and first.copied > 0
        assert [(each.packs, each.until) for each in first.waiting] == [(first.condemned, clock.now + HOUR)]
        assert check(repository, 100).ok
        clock.now += HOUR // 2
        assert run(repository, clock, HOUR).freed == 0
        clock.now += HOUR
        last = run(repository, clock, HOUR)
        assert last.deleted == first.condemned and last.freed == first.condemned_size
        assert sum(size for _, _, size in list_packs(repository)) < size - 90_000
        report = check(repository, 100)
        assert report.ok and report.notes == []
    with world.open(cache=source.parent / "fresh") as repository:
        repository.refresh()
        by_id = {point.id: point for point in repository.points()}
        assert set(by_id) == {points[1].id, points[2].id}
        assert files_of(repository.reader(), by_id[points[2].id]) == files_on_disk(source)


def test_a_soft_deleted_point_is_kept_for_its_days(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository:
        delete_points(repository, points[:1], clock)
        clock.now += 13 * DAY
        assert run(repository, clock).condemned == 0
        assert [known.point for known in deleted_points(repository, Problems())] == points[:1]
        clock.now += 2 * DAY
        assert run(repository, clock).freed > 90_000
        with pytest.raises(PointNotFound):
            undelete_points(repository, points[:1])
        with pytest.raises(InvalidRequest):
            delete_points(repository, points[1:], clock, keep_days=13)


def test_a_backup_under_way_is_waited_for(world: World, source: Path, clock: Clock) -> None:
    """Its session is older than what is condemned: it may rely on that. What it has stored already is left alone."""
    points = fill(world, source, clock)
    with world.open() as repository:
        point = PointId(new_id())
        announce_backup(repository, "ab" * 16, point, clock, lambda gone: None)
        repository.refresh()
        with repository.writer(point) as writer:
            young = writer.chunk(RNG.randbytes(5000))
            writer.finish()
        purge(repository, clock, points[0])
        report = run(repository, clock)
        assert report.condemned > 0 and report.freed == 0
        assert point[:8] in report.waiting[0].why
        assert repository.index.find(young) is not None
        clock.now += 9 * DAY  # it is dead now, and its point can never come
        assert run(repository, clock).freed > 0
        assert repository.index.find(young) is None
        with pytest.raises(BackupOverdue):
            repository.commit(
                Point(
                    id=point,
                    machine_id=points[0].machine_id,
                    machine="m",
                    started=1,
                    finished=1,
                    paths=[],
                    root=points[1].root,
                )
            )
        assert check(repository).ok


def test_a_killed_backup_is_not_waited_for_long_when_its_machine_goes_on(
    world: World, source: Path, clock: Clock
) -> None:
    points = fill(world, source, clock)
    with world.open() as repository:
        Announcement(repository, points[0].machine_id, BACKUP, clock, PointId(new_id())).begin()
    clock.now += HOUR
    fill(world, source, clock, turns=1)
    with world.open() as repository:
        purge(repository, clock, points[0])
        (waiting,) = run(repository, clock, grace=1).waiting  # which also removes the session of the backup that ended
        clock.now += 1
        (waiting,) = run(repository, clock).waiting
        assert "was begun before" in waiting.why
        clock.now = waiting.until
        report = run(repository, clock)
        assert (report.waiting, report.freed > 0) == ([], True)
        assert waiting.until < points[0].started + 3 * DAY


def test_a_backup_that_knows_what_is_condemned_is_not_waited_for(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository, world.open(cache=source.parent / "other") as other:
        purge(repository, clock, points[0])
        run(repository, clock, HOUR)
        session, _ = announce_backup(other, "ab" * 16, PointId(new_id()), clock, lambda gone: None)
        other.refresh()
        session.renew(knows=sorted(other.condemned))
        clock.now += 2 * HOUR
        assert run(repository, clock, HOUR).freed > 0


def test_what_is_only_in_condemned_packs_is_stored_again(world: World, source: Path, clock: Clock) -> None:
    data = RNG.randbytes(50_000)
    write_files(source, {"one": data})
    first = world.backup(source, now=clock).point
    assert first is not None
    (source / "one").unlink()
    write_files(source, {"two": b"other"})
    clock.now += HOUR
    world.backup(source, now=clock)
    with world.open() as repository:
        purge(repository, clock, first)
        run(repository, clock, HOUR)
    write_files(source, {"again": data})
    clock.now += 1
    back = world.backup(source, now=clock).point
    assert back is not None and back.stats.added > 50_000
    with world.open() as repository:
        clock.now += 2 * HOUR
        assert run(repository, clock).freed > 50_000
        assert check(repository, 100).ok
        assert files_of(repository.reader(), back) == files_on_disk(source)


def test_a_parent_that_was_purged_just_now_is_not_relied_on(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository:
        asked: list[set[str]] = []

        def choose(gone: set[str]) -> Point | None:
            asked.append(set(gone))
            if not gone:  # it goes between the choice and the announcement
                purge(repository, clock, points[2])
                run(repository, clock, HOUR)
            return next((point for point in reversed(points) if point.id not in gone), None)

        session, parent = announce_backup(repository, "ab" * 16, PointId(new_id()), clock, choose)
        assert asked == [set(), {points[2].id}]
        assert parent == points[1] and still_there(repository, points[1].id)
        session.must_be_timely()
        clock.now += 8 * DAY
        with pytest.raises(BackupOverdue):
            session.must_be_timely()


def test_what_a_drive_shows_is_kept_while_it_is_announced(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository, world.open(cache=source.parent / "drive") as drive:
        drive.refresh()
        session = Announcement(drive, "cd" * 16, DRIVE, clock)
        assert session.show(points) == points
        purge(repository, clock, points[0])
        clock.now += HOUR
        assert session.due <= clock.now
        assert session.show(points) == points  # it can still be had: no collect has purged it yet
        report = run(repository, clock)
        assert report.freed == 0
        assert ["for drives (1)" in note for note in report.notes] == [True]
        assert session.show(points) == points[1:]  # not any more; but what is told goes on being kept
        assert files_of(drive.reader(), points[0])
        clock.now += 4 * HOUR  # it is silent: it has gone
        assert run(repository, clock).freed > 90_000
        assert still_there(drive, points[1].id)


def test_a_reader_finds_what_was_moved(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository, world.open(cache=source.parent / "drive") as drive:
        drive.refresh()
        reader = drive.reader()
        purge(repository, clock, points[0])
        assert run(repository, clock).copied > 0
        assert files_of(reader, points[2]) == files_on_disk(source)


def test_a_damaged_tree_stops_it(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    with world.open() as repository:
        purge(repository, clock, points[0])
        names = [repository.layout.pack(kind, pack) for kind, pack, _ in list_packs(repository)]
        for name in names:
            if "/tree/" in name:
                repository.vault.delete(name)
    with world.open(cache=source.parent / "fresh") as repository:
        with pytest.raises(Damaged, match="nothing is collected"):
            run(repository, clock)
        assert all("/tree/" in name or any(e.name == name for e in repository.vault.list("")) for name in names)


def test_packs_of_a_killed_run_go(world: World, source: Path, clock: Clock) -> None:
    fill(world, source, clock)
    with world.open() as repository, pytest.raises(RuntimeError, match="killed"):
        point = PointId(new_id())
        announce_backup(repository, "ab" * 16, point, clock, lambda gone: None)
        with repository.writer(point) as writer:
            writer.chunk(RNG.randbytes(200_000))
            raise RuntimeError("killed")
    with world.open(cache=source.parent / "fresh") as repository:
        assert run(repository, clock).condemned == 0
        clock.now += 9 * DAY
        run(repository, clock)
        assert check(repository, 100).notes == []


def test_deleting_needs_more_than_create_and_read(world: World, source: Path, clock: Clock) -> None:
    points = fill(world, source, clock)
    refuse = Fault(at=1, times=10**9, error=VaultReadOnly(world.vault.url, "no"), ops={"delete"})
    with world.open(FaultyVault(world.vault, [refuse])) as repository:
        with pytest.raises(VaultReadOnly):
            delete_points(repository, points, clock, purge_now=True)
        assert repository.points() == points
    write_files(source, {"more": b"more"})
    assert world.backup(source, vault=FaultyVault(world.vault, [refuse]), now=clock).point is not None
    session = Announcement(world.open(), "cd" * 16, BACKUP, clock)
    session.begin()
    session.end()


def test_many_small_packs_and_segments_are_joined(world: World, source: Path, clock: Clock) -> None:
    for turn in range(24):
        write_files(source, {f"{turn}": RNG.randbytes(300)})
        world.backup(source, now=clock)
        clock.now += HOUR
    with world.open() as repository:
        before = len([*list_packs(repository)])
        report = run(repository, clock, max_unused=100)
        assert report.repacked > 16 and report.segments < 4
        assert len([*list_packs(repository)]) < before / 2
        assert check(repository, 100).ok


def test_the_worst_packs_are_repacked_first() -> None:
    packs = [
        PackUse(n, PackId(bytes([n]) * 32), PackKind.DATA, 100, used) for n, used in enumerate((100, 90, 50, 10, 0))
    ]
    assert [pack.number for pack in make_plan(packs, 100, None, {}).dead] == [4]
    assert make_plan(packs, 100, None, {}).repack == []
    assert [pack.number for pack in make_plan(packs, 20, None, {}).repack] == [3]
    assert [pack.number for pack in make_plan(packs, 0, None, {}).repack] == [1, 2, 3]
    bounded = make_plan(packs, 0, 60, {})
    assert [pack.number for pack in bounded.repack] == [2, 3] and bounded.kept_unused == 10


def test_a_missing_chunk_is_told_and_strays_stay(world: World, source: Path, clock: Clock) -> None:
    fill(world, source, clock)
    with world.open() as repository:
        kind, pack, _ = next(entry for entry in list_packs(repository) if entry[0] == PackKind.DATA)
        repository.vault.delete(repository.layout.pack(kind, pack))
        report = run(repository, clock)
        assert report.missing > 0 and "in no pack" in report.notes[0]
