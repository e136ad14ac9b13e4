"""Policies as a person writes them: `7 at 08:00,20:00`, `4 on mon,thu`, `12 on 1,15`, `10 on first wed of jan`."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from cas.errors import InvalidRequest
from cas.tasks.retention import DAILY, MONTHLY, WEEKLY, YEARLY, Day, Tier

_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NTH: Final = {"first": 1, "second": 2, "third": 3, "fourth": 4, "last": -1}
_TIER: Final = re.compile(r"(\d{1,5})(?:\s+on\s+(.+?))?(?:\s+at\s+([\d:,\s]+))?")
_TIME: Final = re.compile(r"(\d{1,2}):(\d{2})")
_FORMS: Final = {
    DAILY: "DAYS [at HH:MM,...]",
    WEEKLY: "WEEKS [on mon,thu,...] [at HH:MM,...]",
    MONTHLY: "MONTHS [on 1,15,last,first tue,...] [at HH:MM,...]",
    YEARLY: "YEARS [on 1 jan,last of dec,first wed of jan,...] [at HH:MM,...]",
}
_DEFAULTS: Final = {WEEKLY: "sun", MONTHLY: "1", YEARLY: "1 jan"}


def parse_tier(name: str, text: str) -> Tier:
    """The tier that `text` describes. Raises InvalidRequest."""
    found = _TIER.fullmatch(text.strip().lower())
    if found is None or (name == DAILY and found[2]):
        _refuse(name, text)
    on = [part.strip() for part in (found[2] or _DEFAULTS.get(name, "")).split(",") if part.strip()]
    at = sorted({_minutes(name, text, part) for part in (found[3] or "").split(",") if part.strip()})
    weekdays: list[int] = []
    days: list[Day] = []
    for part in on:
        if name == WEEKLY:
            weekdays.append(_position(_WEEKDAYS, part, name, text))
        else:
            days.append(_day(name, text, part.replace(" of ", " ").split()))
    return Tier(int(found[1]), sorted(set(weekdays)), days, at)


def _minutes(name: str, text: str, part: str) -> int:
    found = _TIME.fullmatch(part.strip())
    if found is None or int(found[1]) > 23 or int(found[2]) > 59:
        _refuse(name, text)
    return int(found[1]) * 60 + int(found[2])


def _position(names: tuple[str, ...], word: str, tier: str, text: str) -> int:
    if len(word) < 3 or word[:3] not in names:
        _refuse(tier, text)
    return names.index(word[:3])


def _day(name: str, text: str, words: list[str]) -> Day:
    month = 0
    if name == YEARLY:
        if len(words) < 2:
            _refuse(name, text)
        at = 0 if words[0][:3] in _MONTHS else -1
        month = 1 + _position(_MONTHS, words.pop(at), name, text)
    if len(words) == 2 and words[0] in _NTH:
        return Day(nth=_NTH[words[0]], weekday=_position(_WEEKDAYS, words[1], name, text), month=month)
    if words == ["last"]:
        return Day(number=-1, month=month)
    if len(words) != 1 or not words[0].isdecimal() or not 1 <= int(words[0]) <= 31:
        _refuse(name, text)
    return Day(number=int(words[0]), month=month)


def _refuse(name: str, text: str) -> NoReturn:
    raise InvalidRequest(f"'{text}' is no {name} tier.", f"Write it as {_FORMS[name]}.")


def tier_text(name: str, tier: Tier) -> str:
    """The tier as `parse_tier` takes it."""
    parts = [str(tier.keep)]
    on = [_WEEKDAYS[day] for day in tier.weekdays] + [_day_text(day) for day in tier.days]
    if on:
        parts.append("on " + ",".join(on))
    if tier.at:
        parts.append("at " + ",".join(f"{minutes // 60:02}:{minutes % 60:02}" for minutes in tier.at))
    return " ".join(parts)


def _day_text(day: Day) -> str:
    names = {number: word for word, number in _NTH.items()}
    if day.nth:
        text = f"{names[day.nth]} {_WEEKDAYS[day.weekday]}"
    else:
        text = "last" if day.number == -1 else str(day.number)
    return f"{text} of {_MONTHS[day.month - 1]}" if day.month else text
