"""Retention: which points are kept, by what, and until when. Pure: points, a policy and the time in; an answer out.

A policy has up to four tiers. A tier has slots, the times at which one of its points is due: days that its selectors
choose, at times of day. A slot's point is the first one at or after it, so that the next successful backup stands in
for a missed one. It is kept for the tier's days, weeks, months or years, counted from the slot by the calendar of the
policy's time zone. Points are judged among those that protect the same paths. Nothing is remembered between calls: a
changed policy holds for all points at once.

Deleting what is not kept changes no verdict on the rest. A point inherits the slots of its deleted predecessors; as a
slot's end is its own, whichever point holds it, those are over, or their points would not have been deleted. (Counted
from the point's time, the end would move with each heir.) A slot that a kept point holds stays with it.
"""

from __future__ import annotations

import calendar
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

from msgspec import Struct

from cas.errors import InvalidRequest

DAILY: Final = "daily"
WEEKLY: Final = "weekly"
MONTHLY: Final = "monthly"
YEARLY: Final = "yearly"
LIMITS: Final = {DAILY: (7, 9999), WEEKLY: (4, 5163), MONTHLY: (3, 1188), YEARLY: (1, 99)}
"""The least and the most of a tier, in its own unit."""

MOST_POINTS: Final = 9999  # that a policy may keep
RETAIN_TAG: Final = "retain-until"  # a point's tag: a date, or ALWAYS
ALWAYS: Final = "always"
_NS: Final = 1_000_000_000
_LAST: Final = -1
_APART: Final = {
    DAILY: 3,
    WEEKLY: 9,
    MONTHLY: 40,
    YEARLY: 380,
}  # days, among which there is a slot of the tier for sure


class Day(Struct, frozen=True, omit_defaults=True):
    """A day of a month: by number (-1: the last; a number the month has not is its last), or by weekday (0: Monday)."""

    number: int = 0
    nth: int = 0  # 1 to 4, or -1 for the last
    weekday: int = 0
    month: int = 0  # of yearly tiers only


class Tier(Struct, frozen=True, omit_defaults=True):
    """What one tier keeps. `at` are minutes of the day; none means all points of a daily tier, midnight of others."""

    keep: int
    weekdays: list[int] = []
    days: list[Day] = []
    at: list[int] = []


class Policy(Struct, frozen=True, omit_defaults=True):
    """What a machine keeps. A policy without tiers keeps everything."""

    daily: Tier | None = None
    weekly: Tier | None = None
    monthly: Tier | None = None
    yearly: Tier | None = None
    zone: str = "UTC"

    @property
    def tiers(self) -> list[tuple[str, Tier]]:
        named = ((DAILY, self.daily), (WEEKLY, self.weekly), (MONTHLY, self.monthly), (YEARLY, self.yearly))
        return [(name, tier) for name, tier in named if tier is not None]


@dataclass(frozen=True, slots=True)
class Taken:
    """A point as retention sees it: `started` in ns, what its tag RETAIN_TAG says, and the paths that it protects."""

    id: str
    started: int
    retain: str = ""
    paths: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What becomes of a point. `expires` is ns; None is never. A point is kept past it where `reason` says why."""

    id: str
    tiers: list[str] = field(default_factory=list)
    expires: int | None = 0
    keep: bool = False
    reason: str = ""


def check_policy(policy: Policy) -> None:
    """Raise InvalidRequest for limits out of range, selectors that choose nothing, and more points than can be."""
    total = 0.0
    for name, tier in policy.tiers:
        least, most = LIMITS[name]
        unit = {DAILY: "days", WEEKLY: "weeks", MONTHLY: "months", YEARLY: "years"}[name]
        if not least <= tier.keep <= most:
            raise InvalidRequest(f"The {name} tier keeps {least} to {most} {unit}, not {tier.keep}.")
        if name == WEEKLY and not tier.weekdays:
            raise InvalidRequest("The weekly tier needs weekdays.")
        if name in (MONTHLY, YEARLY) and not tier.days:
            raise InvalidRequest(f"The {name} tier needs days.")
        if any((day.month == 0) == (name == YEARLY) for day in tier.days):
            raise InvalidRequest("The days of a yearly tier need a month, and others have none.")
        selected = len(tier.weekdays) if name == WEEKLY else len(tier.days) if name != DAILY else 1
        total += tier.keep * selected * max(len(tier.at), 1)
    if total > MOST_POINTS:
        raise InvalidRequest(f"The policy would keep up to {total:.0f} points; {MOST_POINTS:,} is the most.")


def keep(points: Iterable[Taken], policy: Policy, now: int, zone: tzinfo) -> list[Verdict]:
    """A verdict on each point of one machine, oldest first. `now` is ns.

    Points of the same paths are judged by themselves, as if there were no others. The newest of them always stays; so
    does the newest of a weekly, monthly or yearly tier, although it has expired, until a backup has been taken since.
    Without tiers everything stays.
    """
    ordered = sorted(points, key=lambda point: (point.started, point.id))
    groups: dict[tuple[bytes, ...], list[Taken]] = {}
    for point in ordered:
        groups.setdefault(point.paths, []).append(point)
    found = {verdict.id: verdict for group in groups.values() for verdict in _judged(group, policy, now, zone)}
    return [found[point.id] for point in ordered]


def _judged(ordered: list[Taken], policy: Policy, now: int, zone: tzinfo) -> list[Verdict]:
    """The verdicts on points of the same paths, of which there is at least one, oldest first."""
    verdicts = [Verdict(point.id) for point in ordered]
    starts = [point.started for point in ordered]
    long_term = -1
    for name, tier in policy.tiers:
        chosen = _chosen(name, tier, starts, zone)
        for position, slot in chosen.items():
            verdict = verdicts[position]
            until = _later(slot, name, tier.keep, zone)
            if until > now:
                verdict.tiers.append(name)
            _extend(verdict, until)
        if name != DAILY:
            long_term = max([long_term, *chosen])
    for point, verdict in zip(ordered, verdicts, strict=True):
        if point.retain:
            _extend(verdict, retained_until(point.retain, zone))
        verdict.keep = verdict.expires is None or verdict.expires > now
    _keep_anyway(verdicts, starts, policy, long_term)
    return verdicts


def _keep_anyway(verdicts: list[Verdict], starts: list[int], policy: Policy, long_term: int) -> None:
    if not policy.tiers:
        for verdict in verdicts:
            verdict.keep, verdict.expires, verdict.reason = True, None, "there is no policy"
        return
    if not verdicts[-1].keep:
        verdicts[-1].keep, verdicts[-1].reason = True, "it is the newest"
    if long_term >= 0:
        verdict = verdicts[long_term]
        if not verdict.keep and verdict.expires is not None and starts[-1] < verdict.expires:
            verdict.keep, verdict.reason = True, "until backups resume"


def _extend(verdict: Verdict, until: int | None) -> None:
    verdict.expires = None if until is None or verdict.expires is None else max(verdict.expires, until)


def retained_until(text: str, zone: tzinfo) -> int | None:
    """When a point that is to be kept until a date may go: the end of that day, in ns; None for `always`.

    What does not parse counts as `always`: nothing is deleted for a slip of the pen (`check_retain` refuses it early).
    """
    try:
        day = date.fromisoformat(text.strip())
        return _instant(datetime(day.year, day.month, day.day) + timedelta(days=1), zone)
    except (ValueError, OverflowError):
        return None


def check_retain(text: str) -> None:
    """Raise InvalidRequest for a tag RETAIN_TAG that is neither a date nor `always`."""
    if text.strip() == ALWAYS:
        return
    try:
        date.fromisoformat(text.strip())
    except ValueError:
        raise InvalidRequest(
            f"'{text}' is no date until which to retain a point.", f"Write {RETAIN_TAG}=2030-12-31, or ={ALWAYS}."
        ) from None


# --- slots ----------------------------------------------------------------------------------------------------------


def _chosen(name: str, tier: Tier, starts: Sequence[int], zone: tzinfo) -> dict[int, int]:
    """The positions of a tier's points, and for each the last of its slots in ns. At least the oldest point is one:
    it is the first after the last slot before it, whenever points before it were deleted."""
    if name == DAILY and not tier.at:
        return dict(enumerate(starts))
    chosen: dict[int, int] = {}
    first = _local(starts[0], zone).date() - timedelta(days=_APART[name])
    for day in _days(first, _local(starts[-1], zone).date()):
        if not _selected(name, tier, day):
            continue
        for minutes in tier.at or [0]:
            slot = _instant(datetime(day.year, day.month, day.day) + timedelta(minutes=minutes), zone)
            position = bisect_left(starts, slot)
            if position < len(starts):
                chosen[position] = max(slot, chosen.get(position, slot))
    return chosen


def _days(first: date, last: date) -> Iterator[date]:
    for number in range(first.toordinal(), last.toordinal() + 1):
        yield date.fromordinal(number)


def _selected(name: str, tier: Tier, day: date) -> bool:
    if name == DAILY:
        return True
    if name == WEEKLY:
        return day.weekday() in tier.weekdays
    return any((choice.month in (0, day.month)) and _is_day(choice, day) for choice in tier.days)


def _is_day(choice: Day, day: date) -> bool:
    length = calendar.monthrange(day.year, day.month)[1]
    if choice.nth:
        if day.weekday() != choice.weekday:
            return False
        return day.day + 7 > length if choice.nth == _LAST else (day.day + 6) // 7 == choice.nth
    wanted = length if choice.number == _LAST else min(choice.number, length)
    return day.day == wanted


# --- the calendar ---------------------------------------------------------------------------------------------------


def _local(ns: int, zone: tzinfo) -> datetime:
    """The wall clock, without its zone, to the second."""
    return datetime.fromtimestamp(ns // _NS, UTC).astimezone(zone).replace(tzinfo=None)


def _instant(wall: datetime, zone: tzinfo) -> int:
    """The moment of a wall clock's time, in ns: of two the first; one that is skipped counts as if it had come."""
    return int(wall.replace(tzinfo=zone).astimezone(UTC).timestamp()) * _NS


def _later(started: int, name: str, count: int, zone: tzinfo) -> int:
    """The same wall clock's time so many days, weeks, months or years later; a day that a month lacks is its last."""
    wall = _local(started, zone)
    if name in (DAILY, WEEKLY):
        return _instant(wall + timedelta(days=count * (7 if name == WEEKLY else 1)), zone) + started % _NS
    months = wall.year * 12 + wall.month - 1 + count * (12 if name == YEARLY else 1)
    year, month = divmod(months, 12)
    day = min(wall.day, calendar.monthrange(year, month + 1)[1])
    return _instant(wall.replace(year=year, month=month + 1, day=day), zone) + started % _NS
