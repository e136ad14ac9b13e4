"""Which points a drive shows."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as some

from cas.errors import InvalidRequest
from cas.ids import ChunkId, MachineId, PointId
from cas.model import Point
from mount.filters import PointFilter, check_since

_NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
_DAY = 86_400 * 1_000_000_000


def _point(
    started: int = _NOON, *, paths: list[bytes] | None = None, tags: dict[str, str] | None = None, offset: int = 0
) -> Point:
    return Point(
        id=PointId("0" * 32),
        machine_id=MachineId("a" * 32),
        machine="box",
        started=started,
        finished=started,
        paths=[b"/srv/\xff", b"/etc"] if paths is None else paths,
        root=ChunkId(bytes(32)),
        tags=tags or {},
        utc_offset=offset,
    )


def test_nothing_given_leaves_every_point() -> None:
    assert not PointFilter() and str(PointFilter()) == ""
    assert PointFilter().matches(_point(), _NOON)


def test_machines_are_named_or_told_by_their_id() -> None:
    shown = [PointFilter(machine=name).matches(_point(), _NOON) for name in ("box", "a" * 32, "bo", "")]
    assert shown == [True, True, False, False]


def test_a_path_must_be_protected() -> None:
    for path, shown in {
        b"/etc": True,
        b"/etc/x/y": True,
        b"/etcetera": False,
        b"/": False,
        b"/srv/\xff/z": True,
    }.items():
        assert PointFilter(path=os.fsdecode(path)).matches(_point(), _NOON) is shown, path
    assert PointFilter(path="/any").matches(_point(paths=[b"/"]), _NOON)


def test_tags_must_all_be_there() -> None:
    point = _point(tags={"kind": "nightly", "by": "cron"})
    assert PointFilter(tags={"kind": "nightly", "by": "cron"}).matches(point, _NOON)
    assert not PointFilter(tags={"kind": "nightly", "by": "me"}).matches(point, _NOON)
    assert not PointFilter(tags={"kind": ""}).matches(_point(), _NOON)


def test_since_a_local_time_or_so_long_ago() -> None:
    cases = {
        "2026": True,
        "2026-11": True,
        "2026-12": False,
        "2026-11-22": True,
        "2026-11-22T12": True,
        "2026-11-22 12:00": True,
        "2026-11-22T12:00:01": False,
        "2027": False,
    }
    for text, shown in cases.items():
        assert PointFilter(since=check_since(text)).matches(_point(), _NOON) is shown, text
    assert PointFilter(since="2026-11-22T13").matches(_point(offset=3600), _NOON)
    for text, days in {"24h": 1, "1d": 1, "2w": 14, "1y": 365}.items():
        only = PointFilter(since=check_since(text))
        assert only.matches(_point(), _NOON + days * _DAY) and not only.matches(_point(), _NOON + days * _DAY + 1)


@pytest.mark.parametrize(
    "text", ["", "d", "30", "30m", "-3d", "2026-13", "2026-02-30", "2026-11-22T25", "yesterday", "2026-1"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no time"):
        check_since(text)


@given(
    some.none() | some.text(),
    some.none() | some.binary().map(os.fsdecode),
    some.none() | some.sampled_from(["30d", "2026-11"]),
    some.dictionaries(some.text(), some.text(), max_size=3),
)
def test_a_filter_survives_json(machine: str | None, path: str | None, since: str | None, tags: dict[str, str]) -> None:
    only = PointFilter(machine=machine, path=path, since=since, tags=tags)
    assert PointFilter.decode(json.loads(json.dumps(only.encode()))) == only
