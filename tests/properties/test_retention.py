"""Retention against a naive model that walks every day and looks at every point, over policies, gaps and time zones."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.errors import InvalidRequest
from cas.tasks.retention import Day, Policy, Taken, Tier, Verdict, check_policy, check_retain, keep
from cas.tasks.retention_text import parse_tier, tier_text

NS = 1_000_000_000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Sao_Paulo")


# --- the naive model ------------------------------------------------------------------------------------------------


def matches(day: Day, when: date) -> bool:
    if day.month and day.month != when.month:
        return False
    weeks = calendar.monthcalendar(when.year, when.month)
    if day.nth:
        column = [week[day.weekday] for week in weeks if week[day.weekday]]
        return (column[-1] if day.nth == -1 else column[day.nth - 1]) == when.day
    last = max(weeks[-1])
    return when.day == (last if day.number == -1 or day.number > last else day.number)


def due(name: str, tier: Tier, when: date) -> bool:
    if name == "weekly":
        return when.weekday() in tier.weekdays
    if name in ("monthly", "yearly"):
        return any(matches(day, when) for day in tier.days)
    return True


def moment(wall: datetime, zone: ZoneInfo) -> float:
    return wall.replace(tzinfo=zone).timestamp()


def end(name: str, count: int, started: float, zone: ZoneInfo) -> float:
    wall = datetime.fromtimestamp(started, zone).replace(tzinfo=None)
    if name == "daily":
        return moment(wall + timedelta(days=count), zone)
    if name == "weekly":
        return moment(wall + timedelta(weeks=count), zone)
    year, month = wall.year, wall.month
    for _ in range(count * (12 if name == "yearly" else 1)):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    day = wall.day
    while True:
        try:
            return moment(wall.replace(year=year, month=month, day=day), zone)
        except ValueError:
            day -= 1


def naive(starts: list[float], policy: Policy, now: float, zone: ZoneInfo) -> list[bool]:
    """Whether each point is kept, by the words of the README."""
    ends: list[list[float]] = [[] for _ in starts]
    long_term: set[int] = set()
    for name, tier in policy.tiers:
        holders: set[int] = set()
        if name == "daily" and not tier.at:
            holders = set(range(len(starts)))
            for number, start in enumerate(starts):
                ends[number].append(end(name, tier.keep, start, zone))
        else:
            # All slots ever, in effect: of those before the first point the last one tells, at most a year ago.
            when = datetime.fromtimestamp(starts[0], zone).date() - timedelta(days=380)
            while when <= datetime.fromtimestamp(now, zone).date():
                if due(name, tier, when):
                    for minutes in tier.at or [0]:
                        slot = moment(datetime(when.year, when.month, when.day) + timedelta(minutes=minutes), zone)
                        after = [number for number, start in enumerate(starts) if start >= slot]
                        if slot <= now and after:
                            holders.add(after[0])
                            ends[after[0]].append(end(name, tier.keep, slot, zone))
                when += timedelta(days=1)
        if name != "daily":
            long_term |= holders
    kept = [any(each > now for each in known) for known in ends]
    if long_term:
        newest = max(long_term)
        kept[newest] = kept[newest] or starts[-1] < max(ends[newest])
    kept[-1] = True
    return kept


# --- what is compared -----------------------------------------------------------------------------------------------

minutes = st.lists(st.integers(0, 47).map(lambda half: half * 30), max_size=2, unique=True).map(sorted)
by_number = st.builds(Day, number=st.sampled_from([-1, 1, 2, 15, 28, 29, 30, 31]))
by_weekday = st.builds(Day, nth=st.sampled_from([1, 2, 3, 4, -1]), weekday=st.integers(0, 6))
days = by_number | by_weekday


def in_month(day: Day, month: int) -> Day:
    return Day(day.number, day.nth, day.weekday, month)


yearly_days = st.builds(in_month, days, st.integers(1, 12))
policies = st.builds(
    Policy,
    daily=st.none() | st.builds(Tier, st.integers(7, 40), at=minutes),
    weekly=st.none()
    | st.builds(Tier, st.integers(4, 12), weekdays=st.lists(st.integers(0, 6), min_size=1, max_size=3), at=minutes),
    monthly=st.none() | st.builds(Tier, st.integers(3, 24), days=st.lists(days, min_size=1, max_size=3), at=minutes),
    yearly=st.none()
    | st.builds(Tier, st.integers(1, 3), days=st.lists(yearly_days, min_size=1, max_size=2), at=minutes),
).filter(lambda policy: bool(policy.tiers))


@settings(max_examples=150)
@given(
    policy=policies,
    zone=st.sampled_from(ZONES),
    first=st.integers(1_600_000_000, 1_790_000_000),
    gaps=st.lists(st.integers(1, 60), min_size=1, max_size=60),  # hours, most of them; some gaps are long
    factor=st.sampled_from([1, 1, 7, 24]),
    rest=st.integers(0, 400 * 86400),
)
def test_as_the_naive_model(policy: Policy, zone: str, first: int, gaps: list[int], factor: int, rest: int) -> None:
    starts = [first]
    for gap in gaps:
        starts.append(starts[-1] + gap * 3600 * factor)
    now = starts[-1] + rest
    where = ZoneInfo(zone)
    verdicts = keep([Taken(str(n), start * NS) for n, start in enumerate(starts)], policy, now * NS, where)
    assert [verdict.keep for verdict in verdicts] == naive(
        [float(start) for start in starts], policy, float(now), where
    )


# --- applying it again ----------------------------------------------------------------------------------------------

histories = st.builds(
    lambda first, gaps, factor: [first + sum(gaps[:count]) * 3600 * factor for count in range(len(gaps) + 1)],
    st.integers(1_600_000_000, 1_790_000_000),
    st.lists(st.integers(1, 60), min_size=1, max_size=25),
    st.sampled_from([1, 7, 24, 100]),
)
tags = st.lists(st.sampled_from(["", "", "", "", "2021-06-01", "2026-01-01", "always"]), min_size=26, max_size=26)
folders = st.lists(st.sampled_from([(b"/srv",), (b"/etc",), (b"/etc", b"/srv")]), min_size=26, max_size=26)


def points_of(starts: list[int], retain: list[str], paths: list[tuple[bytes, ...]]) -> list[Taken]:
    return [Taken(f"{n:04}", start * NS, retain[n], paths[n]) for n, start in enumerate(starts)]


def lasting(verdicts: list[Verdict]) -> list[tuple[str, list[str], int | None, str]]:
    """Who is kept, by what, until when. How long ago a point expired that is kept for another reason tells nothing."""
    return [(v.id, v.tiers, 0 if v.reason else v.expires, v.reason) for v in verdicts if v.keep]


def left_of(points: list[Taken], verdicts: list[Verdict]) -> list[Taken]:
    kept = {verdict.id for verdict in verdicts if verdict.keep}
    return [point for point in points if point.id in kept]


@settings(max_examples=250)
@given(
    policy=policies,
    zone=st.sampled_from(ZONES),
    starts=histories,
    retain=tags,
    paths=folders,
    rest=st.integers(0, 800 * 86400),
)
def test_applied_twice_nothing_more_goes(
    policy: Policy, zone: str, starts: list[int], retain: list[str], paths: list[tuple[bytes, ...]], rest: int
) -> None:
    where, now = ZoneInfo(zone), (starts[-1] + rest) * NS
    points = points_of(starts, retain, paths)
    once = keep(points, policy, now, where)
    left = left_of(points, once)
    again = keep(left, policy, now, where)
    assert all(verdict.keep for verdict in again)
    assert lasting(again) == lasting(once)


@settings(max_examples=100)
@given(
    policy=policies,
    zone=st.sampled_from(ZONES),
    starts=histories,
    retain=tags,
    paths=folders,
    waits=st.lists(st.integers(0, 3600 * 24 * 30), min_size=26, max_size=26),
)
def test_what_was_promised_is_kept(
    policy: Policy,
    zone: str,
    starts: list[int],
    retain: list[str],
    paths: list[tuple[bytes, ...]],
    waits: list[int],
) -> None:
    """Points come, and the policy is applied after each: none goes before the time that was once told for it."""
    where = ZoneInfo(zone)
    points: list[Taken] = []
    promised: dict[str, tuple[list[str], int | None]] = {}
    for number, point in enumerate(points_of(starts, retain, paths)):
        points.append(point)
        follow = starts[number + 1] if number + 1 < len(starts) else point.started // NS + 3600 * 24 * 400
        now = min(point.started // NS + waits[number], follow) * NS
        verdicts = keep(points, policy, now, where)
        found = {verdict.id: verdict for verdict in verdicts}
        for name, (held, until) in promised.items():
            if until is None or until > now:
                assert found[name].keep and found[name].expires == until
                assert set(found[name].tiers) <= set(held)
        promised = {v.id: (v.tiers, v.expires) for v in verdicts if v.keep and (v.expires is None or v.expires > now)}
        points = left_of(points, verdicts)


@given(policy=policies, starts=histories, paths=folders, rest=st.integers(0, 400 * 86400))
@settings(max_examples=60)
def test_each_set_of_paths_by_itself(
    policy: Policy, starts: list[int], paths: list[tuple[bytes, ...]], rest: int
) -> None:
    utc, now = ZoneInfo("UTC"), (starts[-1] + rest) * NS
    points = points_of(starts, [""] * 26, paths)
    together = {verdict.id: verdict for verdict in keep(points, policy, now, utc)}
    assert list(together) == [point.id for point in points]
    for group in set(paths):
        alone = keep([point for point in points if point.paths == group], policy, now, utc)
        assert alone == [together[verdict.id] for verdict in alone]
        assert not alone or alone[-1].keep


def test_two_nightly_jobs_keep_their_own_tiers() -> None:
    utc, day = ZoneInfo("UTC"), 86400 * NS
    begin = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * NS
    points = []
    for number in range(300):
        points.append(Taken(f"srv{number}", begin + number * day + 817 * 60 * NS, "", (b"/srv",)))
        points.append(Taken(f"etc{number}", begin + number * day + 847 * 60 * NS, "", (b"/etc",)))
    policy = Policy(weekly=Tier(4, weekdays=[0]), monthly=Tier(12, days=[Day(number=1)]))
    kept = [verdict.id for verdict in keep(points, policy, points[-1].started, utc) if verdict.keep]
    assert {name[3:] for name in kept if name.startswith("srv")} == {
        name[3:] for name in kept if name.startswith("etc")
    }
    assert len(kept) == 2 * 15  # 10 of months, 4 of weeks, the newest


def test_a_point_that_stood_in_stays_when_all_before_it_are_gone() -> None:
    utc, day = ZoneInfo("UTC"), 86400 * NS
    now = int(datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()) * NS
    points = [Taken(str(age), now - age * day) for age in (33, 19, 12, 1)]
    policy = policy_of("monthly", parse_tier("monthly", "12 on 1"))
    for some in (points, points[1:]):
        left = left_of(some, keep(some, policy, now, utc))
        assert [point.id for point in left] == [p.id for p in some if p.id in ("33", "19", "1")]
        assert left_of(left, keep(left, policy, now, utc)) == left


@pytest.mark.parametrize("name, text", [("weekly", "4"), ("monthly", "12"), ("yearly", "1")])
def test_the_oldest_point_stands_in_for_the_slot_before_it(name: str, text: str) -> None:
    utc, day = ZoneInfo("UTC"), 86400 * NS
    begin = int(datetime(2026, 11, 16, 13, tzinfo=UTC).timestamp()) * NS  # a Monday: the slot of Sunday is before it
    points = [Taken(str(number), begin + number * day) for number in range(5)]
    verdicts = keep(points, policy_of(name, parse_tier(name, text)), points[-1].started, utc)
    assert [verdict.tiers for verdict in verdicts] == [[name], [], [], [], []]
    assert [verdict.keep for verdict in verdicts] == [True, False, False, False, True]


def test_an_heir_is_kept_no_longer_than_its_slot() -> None:
    """The January point is over; the daily points after it inherit its slot, but no year of their own."""
    utc, day = ZoneInfo("UTC"), 86400 * NS
    january = int(datetime(2025, 1, 1, 13, tzinfo=UTC).timestamp()) * NS
    policy = Policy(daily=Tier(7), yearly=Tier(1, days=[Day(number=1, month=1)]))
    points = [Taken("january", january)] + [Taken(str(age), january + (365 - age) * day) for age in (6, 4, 2, 0)]
    verdicts = keep(points, policy, points[-1].started, utc)
    assert [verdict.keep for verdict in verdicts] == [False, True, True, True, True]
    again = keep(points[1:], policy, points[-1].started, utc)
    assert lasting(again) == lasting(verdicts)
    assert [verdict.tiers for verdict in again] == [["daily"], ["daily"], ["daily"], ["daily", "yearly"]]


def test_what_a_tag_may_say() -> None:
    for text in ("always", "2030-12-31"):
        check_retain(text)
    for text in ("", "garbage", "2030-13-01", "31.12.2030", "never"):
        with pytest.raises(InvalidRequest, match="no date"):
            check_retain(text)


# --- examples -------------------------------------------------------------------------------------------------------


def day_by_day(policy: Policy, zone: ZoneInfo, begin: datetime, years: int, times: list[int]) -> list[Taken]:
    """What is left when points are taken every day at these minutes, and the policy is applied each month."""
    points: list[Taken] = []
    wall = begin
    while wall < begin.replace(year=begin.year + years):
        for at in times:
            started = int((wall + timedelta(minutes=at)).replace(tzinfo=zone).timestamp()) * NS
            points.append(Taken(f"{started}", started))
        wall += timedelta(days=1)
        if wall.day == 1:
            kept = {verdict.id for verdict in keep(points, policy, points[-1].started, zone) if verdict.keep}
            points = [point for point in points if point.id in kept]
    kept = {verdict.id for verdict in keep(points, policy, points[-1].started, zone) if verdict.keep}
    return [point for point in points if point.id in kept]


def policy_of(name: str, tier: Tier) -> Policy:
    return msgspec.structs.replace(Policy(), **{name: tier})


def test_56_points() -> None:
    """Twice a day for 7 days, twice a week for 4 weeks, twice a month for 12 months, once a year for 10 years; at
    different times of the day, so that no point serves two tiers."""
    policy = Policy(
        daily=parse_tier("daily", "7 at 06:00,18:00"),
        weekly=parse_tier("weekly", "4 on mon,thu at 10:00"),
        monthly=parse_tier("monthly", "12 on first tue,third tue at 12:00"),
        yearly=parse_tier("yearly", "10 on first wed of jan at 14:00"),
    )
    times = [6 * 60, 10 * 60, 12 * 60, 14 * 60, 18 * 60]
    left = day_by_day(policy, ZoneInfo("Europe/Berlin"), datetime(2015, 1, 1), 12, times)
    assert len(left) == 14 + 8 + 24 + 10


def test_ten_years_of_three_points_a_day_take_seconds() -> None:
    policy = Policy(
        daily=Tier(30),
        weekly=Tier(8, weekdays=[6]),
        monthly=Tier(24, days=[Day(number=-1)]),
        yearly=Tier(10, days=[Day(number=1, month=1)]),
    )
    start = int(datetime(2015, 1, 1, tzinfo=UTC).timestamp())
    points = [Taken(str(n), (start + n * 8 * 3600) * NS) for n in range(10 * 365 * 3)]
    begun = time.process_time()
    kept = sum(verdict.keep for verdict in keep(points, policy, points[-1].started, ZoneInfo("Europe/Berlin")))
    assert time.process_time() - begun < 20
    assert 90 < kept < 150


def test_the_newest_long_term_point_stays_until_backups_resume() -> None:
    policy = Policy(weekly=Tier(4, weekdays=[0]))
    monday = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) * NS
    day = 86400 * NS
    points = [Taken("a", monday), Taken("b", monday + 7 * day), Taken("c", monday + 9 * day)]
    utc = ZoneInfo("UTC")
    later = keep(points, policy, monday + 300 * day, utc)
    assert [verdict.keep for verdict in later] == [False, True, True]
    assert later[1].reason == "until backups resume"
    resumed = keep([*points, Taken("d", monday + 301 * day)], policy, monday + 302 * day, utc)
    assert [verdict.keep for verdict in resumed] == [False, False, False, True]


def test_a_tag_keeps_a_point() -> None:
    policy = Policy(daily=Tier(7))
    day = 86400 * NS
    start = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()) * NS
    points = [Taken("until", start, "2026-06-20"), Taken("always", start + 1, "always"), Taken("none", start + 2)]
    points.append(Taken("typo", start + 3, "2026-6-20x"))
    points.append(Taken("newest", start + 60 * day))
    utc = ZoneInfo("UTC")

    def kept(days: int) -> list[str]:
        return [verdict.id for verdict in keep(points, policy, start + days * day, utc) if verdict.keep]

    assert kept(19) == ["until", "always", "typo", "newest"]
    assert kept(20) == ["always", "typo", "newest"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("daily", "7"),
        ("daily", "4999 at 08:00,20:30"),
        ("weekly", "4 on mon,thu"),
        ("monthly", "12 on 1,15,last,first tue,last sun at 12:00"),
        ("yearly", "10 on 1 of jan,last of dec,first wed of jan"),
    ],
)
def test_texts(name: str, text: str) -> None:
    tier = parse_tier(name, text)
    assert parse_tier(name, tier_text(name, tier)) == tier
    assert tier_text(name, tier) == text
    check_policy(policy_of(name, tier))


@pytest.mark.parametrize(
    "name, text",
    [
        *(("daily", "6"), ("daily", "10000"), ("daily", "7 on mon"), ("daily", "7 at 24:00"), ("daily", "")),
        *(
            ("weekly", "3 on mon"),
            ("weekly", "4 on someday"),
            ("weekly", "5164"),
            ("monthly", "2"),
            ("monthly", "1189"),
        ),
        *(("monthly", "3 on 32"), ("monthly", "3 on fifth tue"), ("yearly", "0"), ("yearly", "100")),
        *(("yearly", "3 on 1"), ("yearly", "3 on first wed"), ("daily", "5000 at 01:00,02:00")),
    ],
)
def test_what_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest):
        check_policy(policy_of(name, parse_tier(name, text)))


def test_more_than_9999_points_are_refused() -> None:
    everyday = Tier(3000, weekdays=list(range(7)))
    with pytest.raises(InvalidRequest, match="9,999"):
        check_policy(Policy(weekly=everyday))
