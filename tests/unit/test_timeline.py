"""The folders above the points: their names in both layouts, and what comes and goes."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as some

from cas.ids import ChunkId, MachineId, PointId
from cas.model import Point
from mount.inodes import ROOT
from mount.timeline import REFRESH_SECONDS, Layout, MachineFolder, PointFolder, Timeline

_NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
_SECOND = 1_000_000_000
_FORMAT = "@GMT-%Y.%m.%d-%H.%M.%S"


def _point(number: int, started: int = _NOON, *, machine: str = "box", offset: int = 0) -> Point:
    return Point(
        id=PointId(f"{number:032x}"),
        machine_id=MachineId("a" * 32),
        machine=machine,
        started=started,
        finished=started,
        paths=[b"/"],
        root=ChunkId(bytes(32)),
        utc_offset=offset,
    )


class _Source:
    """Points that come and go, and a clock."""

    def __init__(self, *points: Point) -> None:
        self.points = list(points)
        self.now = 0.0

    def timeline(self, layout: Layout, *, flat: bool = False) -> Timeline:
        return Timeline(lambda: list(self.points), lambda: self.now, layout=layout, flat=flat)

    def later(self, timeline: Timeline) -> None:
        self.now += REFRESH_SECONDS
        timeline.refresh()


def _names(timeline: Timeline, machine: bytes | None) -> list[bytes]:
    folder = timeline.top if machine is None else timeline.entry(None, machine)
    assert isinstance(folder, MachineFolder)
    return [name for name, _ in timeline.entries(folder)]


def test_gmt_names_are_utc_whatever_the_place_of_the_point() -> None:
    source = _Source(_point(1, offset=5 * 3600), _point(2, _NOON + 61 * _SECOND + 999_999_999, offset=-3600))
    timeline = source.timeline(Layout.GMT)
    assert [name for name, _ in timeline.entries(None)] == [b"box"]
    assert _names(timeline, b"box") == [b"@GMT-2026.11.22-12.00.00", b"@GMT-2026.11.22-12.01.01"]
    folder = timeline.entry(None, b"box")
    assert isinstance(folder, MachineFolder) and timeline.entry(folder, b"latest") is None


def test_one_machine_alone_has_its_points_at_the_root_even_before_there_are_any() -> None:
    source = _Source()
    timeline = source.timeline(Layout.GMT, flat=True)
    assert timeline.top is not None and timeline.top.inode == ROOT
    assert _names(timeline, None) == [] and timeline.newest() == [] and timeline.count == 0
    source.points.append(_point(1))
    source.later(timeline)
    assert _names(timeline, None) == [b"@GMT-2026.11.22-12.00.00"] and timeline.count == 1
    place = timeline.entry(timeline.top, b"@GMT-2026.11.22-12.00.00")
    assert isinstance(place, PointFolder) and place.parent == ROOT
    assert timeline.path(place) == [b"@GMT-2026.11.22-12.00.00"]


def test_points_of_one_second_get_times_of_their_own_and_keep_them() -> None:
    source = _Source(_point(1), _point(2, _NOON + 5), _point(3, _NOON + _SECOND))
    timeline = source.timeline(Layout.GMT)
    names = [b"@GMT-2026.11.22-12.00.0%d" % second for second in range(3)]
    assert _names(timeline, b"box") == names
    del source.points[0]
    source.later(timeline)
    assert _names(timeline, b"box") == names[1:]


def test_a_machine_that_has_no_points_any_more_goes_and_its_folder_is_empty() -> None:
    source = _Source(_point(1), _point(2, machine="other"))
    timeline = source.timeline(Layout.TIME)
    gone = timeline.entry(None, b"other")
    assert isinstance(gone, MachineFolder) and len(timeline.entries(gone)) == 2
    del source.points[1]
    source.later(timeline)
    assert timeline.entry(None, b"other") is None
    assert timeline.entries(gone) == [] and timeline.entry(gone, b"latest") is None


@given(
    some.lists(some.integers(0, 4_102_444_800).map(lambda second: second * _SECOND), max_size=30),
    some.lists(some.booleans(), max_size=30),
)
def test_every_point_has_one_gmt_name_that_samba_reads(times: list[int], removed: list[bool]) -> None:
    source = _Source(*(_point(number, started) for number, started in enumerate(sorted(times))))
    timeline = source.timeline(Layout.GMT, flat=True)
    assert timeline.top is not None
    shown = timeline.top.points
    assert sorted(folder.point.id for folder in shown.values()) == [point.id for point in source.points]
    for name, folder in shown.items():
        assert re.fullmatch(rb"@GMT-\d{4}(\.\d\d){2}-\d\d(\.\d\d){2}", name)
        told = datetime.strptime(name.decode(), _FORMAT).replace(tzinfo=UTC).timestamp()
        assert 0 <= told - folder.point.started // _SECOND < len(times)
    before = {folder.point.id: folder.name for folder in shown.values()}
    gone = {point.id for point, is_removed in zip(source.points, removed, strict=False) if is_removed}
    source.points = [point for point in source.points if point.id not in gone]
    source.later(timeline)
    after = {folder.point.id: folder.name for folder in timeline.top.points.values()}
    assert after == {key: name for key, name in before.items() if key not in gone}
