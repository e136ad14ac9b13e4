"""The points of a drive: which of them it can show, and what it tells in the vault to keep them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import pytest

from cas.errors import PointNotFound, VaultMissing, VaultReadOnly
from cas.ids import PointId
from cas.model import Point
from cas.repository import Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.lifecycle import DRIVE, Session
from cas.vault.base import VaultEntry
from cas.vault.memory import MemoryVault
from mount.filters import PointFilter
from mount.points import Keeper, PointSource, one_point
from tests.engine import World, cheap_keys, make_world
from tests.faults import Fault, FaultyVault
from tests.integration.drive_bench import wait_for

_NOON = 1_795_348_800_000_000_000
_MACHINE = "ab" * 16


def _purge(repository: Repository, point: Point) -> None:
    _remove(repository, point)
    assert repository.close_point(point.id, _NOON)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    cheap_keys(monkeypatch)
    return make_world(MemoryVault(), tmp_path / "cache")


@pytest.fixture
def points(world: World, tmp_path: Path) -> list[Point]:
    """Three points with different trees."""
    found = []
    (tmp_path / "source").mkdir()
    for started in range(_NOON, _NOON + 3 * 10**9, 10**9):
        (tmp_path / "source" / f"file {started}").write_text("x")
        point = world.backup(tmp_path / "source", now=repeat(started).__next__).point
        assert point is not None
        found.append(point)
    return found


@pytest.fixture
def repository(world: World, points: list[Point]) -> Iterator[Repository]:
    with world.open() as opened:
        opened.refresh()
        yield opened


def _announced(repository: Repository) -> list[set[bytes]]:
    """The roots of each drive that is announced."""
    found = []
    for entry in repository.vault.list(repository.layout.sessions):
        payload = repository.get_object(ObjectKind.SESSION, entry.name, cached=False)
        session = formats.decode(payload, Session, entry.name)
        if session.kind == DRIVE:
            assert session.machine == _MACHINE
            found.append(set(session.roots))
    return found


def _roots(*points: Point) -> set[bytes]:
    return {bytes(point.root) for point in points}


def _remove(repository: Repository, point: Point) -> None:
    repository.vault.delete(repository.layout.points + point.id)


def test_what_is_shown_is_announced_and_taken_back(repository: Repository, points: list[Point]) -> None:
    keeper = Keeper(repository, _MACHINE)
    assert _announced(repository) == []
    assert keeper.show(points[:2])
    assert _announced(repository) == [_roots(*points[:2])]
    assert not keeper.show(points[1:2])
    assert keeper.show(points)
    assert _announced(repository) == [_roots(*points)]
    keeper.close()
    assert _announced(repository) == []


def test_a_point_that_went_before_it_was_announced_is_not_shown(repository: Repository, points: list[Point]) -> None:
    first, second, third = points

    class Late(Keeper):
        """Comes too late: a collect has purged one point, and put its sign in its place, and another is deleted."""

        def show(self, points: Sequence[Point]) -> bool:
            _remove(repository, first)
            _purge(repository, second)
            return super().show(points)

    source = PointSource(repository, PointFilter(), Late(repository, _MACHINE))
    assert source() == [third]


def test_a_point_that_was_purged_is_not_shown_from_the_cache(repository: Repository, points: list[Point]) -> None:
    source = PointSource(repository, PointFilter(), Keeper(repository, _MACHINE))
    assert source() == points
    _purge(repository, points[1])
    assert source() == [points[0], points[2]]
    assert PointSource(repository, PointFilter(), Keeper(repository, _MACHINE))() == [points[0], points[2]]
    assert one_point(repository, points[0].id, Keeper(repository, _MACHINE)) == points[0]
    for gone in (points[1].id, PointId("0" * 32)):
        with pytest.raises(PointNotFound):
            one_point(repository, gone, Keeper(repository, _MACHINE))


def test_a_point_that_is_gone_is_kept_for_a_while(
    repository: Repository, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.points._WAKE_SECONDS", 0.01)
    keeper = Keeper(repository, _MACHINE)
    keeper.start()
    keeper.show(points[:2])
    assert keeper.show(points[1:])
    assert _announced(repository) == [_roots(*points)]
    monkeypatch.setattr("mount.points._LINGER", 0)
    wait_for(lambda: _announced(repository) == [_roots(*points[1:])])
    keeper.close()


def test_a_vault_that_cannot_be_told_is_shown_all_the_same(
    world: World, points: list[Point], caplog: pytest.LogCaptureFixture
) -> None:
    refusing = FaultyVault(world.vault, [Fault(at=1, error=VaultReadOnly("memory:", "so"), ops={"put"}, times=10**6)])
    with world.open(refusing) as repository, caplog.at_level(logging.WARNING):
        source = PointSource(repository, PointFilter(), Keeper(repository, _MACHINE))
        assert source() == source() == points
        assert _announced(repository) == []
    assert len([record for record in caplog.records if "cannot be told" in record.message]) == 1


def test_points_are_read_once_and_follow_the_filter(
    repository: Repository, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(name: str) -> Point:
        read.append(name)
        return Repository.read_point(repository, name)

    monkeypatch.setattr(repository, "read_point", reading)
    source = PointSource(repository, PointFilter(since="2026-11-22T12:00:01"), Keeper(repository, _MACHINE))
    assert [point.id for point in source()] == [point.id for point in points if point.started > _NOON]
    source()
    assert len(read) == 3
    _remove(repository, points[1])
    assert source() == [points[2]]


def test_a_vault_that_is_away_is_told_once(
    world: World, points: list[Point], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world.open() as repository, caplog.at_level(logging.WARNING):
        source = PointSource(repository, PointFilter(), Keeper(repository, _MACHINE))
        assert source() == points

        def away(_prefix: str) -> list[VaultEntry]:
            raise VaultMissing("file:///v")

        monkeypatch.setattr(repository.vault, "list", away)
        for _ in range(3):
            with pytest.raises(VaultMissing):
                source()
        monkeypatch.undo()
        assert source() == points
    assert len([record for record in caplog.records if "cannot be looked for" in record.message]) == 1
