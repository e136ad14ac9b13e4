"""Which recovery points a drive shows. Light to import, and plain JSON for the pipe to the drive's process."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from cas.errors import InvalidRequest

if TYPE_CHECKING:
    from cas.model import Point

_SECOND: Final = 1_000_000_000
_UNITS: Final = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_AGO: Final = re.compile(r"([0-9]{1,6})([hdwy])")
_PREFIX: Final = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}(T[0-9]{2}(:[0-9]{2}(:[0-9]{2})?)?)?)?)?")
_FIRST: Final = "0001-01-01T00:00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class PointFilter:
    """What all points shown have in common; nothing given: every point."""

    machine: str | None = None  # a name or an id
    path: str | None = None  # absolute, as `os.fsdecode` gives it; a point must protect it, or what it lies in
    since: str | None = None  # the beginning of a local time, or how long ago; as `check_since` gave it
    tags: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.machine is not None or self.path is not None or self.since is not None or self.tags)

    def matches(self, point: Point, now: int) -> bool:
        """Whether a point is shown. `now` is ns: "the last 30 days" go on while a drive is open."""
        from cas.tasks.choose import protects  # loads the repository, which the command has no need of

        if self.machine is not None and self.machine not in (point.machine, point.machine_id):
            return False
        if self.path is not None and not protects(point, os.fsencode(self.path)):
            return False
        if self.since is not None and not _is_since(point, self.since, now):
            return False
        return all(point.tags.get(key) == value for key, value in self.tags.items())

    def __str__(self) -> str:
        """For a person: `machine laptop, since 30d`."""
        given = [("machine", self.machine), ("path", self.path), ("since", self.since)]
        given += [("tag", f"{key}={value}") for key, value in self.tags.items()]
        return ", ".join(f"{name} {value}" for name, value in given if value is not None)

    def encode(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @staticmethod
    def decode(values: dict[str, Any]) -> PointFilter:
        """What `encode` gave."""
        return PointFilter(**values)


def check_since(text: str) -> str:
    """What `PointFilter.since` takes: `2026-11`, `2026-11-22T07:30` (a blank may stand for the T), `30d`, `12h`.

    Raises InvalidRequest.
    """
    wanted = text.strip().replace(" ", "T")
    if _AGO.fullmatch(wanted):
        return wanted
    if _PREFIX.fullmatch(wanted):
        try:
            datetime.fromisoformat(wanted + _FIRST[len(wanted) :])
        except ValueError:
            pass
        else:
            return wanted
    raise InvalidRequest(
        f"'{text}' is no time.",
        "Give the beginning of one, such as 2026-11 or 2026-11-22T07:30, or how long ago: 12h, 30d, 8w, 2y.",
    )


def _is_since(point: Point, since: str, now: int) -> bool:
    ago = _AGO.fullmatch(since)
    if ago is not None:
        return point.started >= now - int(ago[1]) * _UNITS[ago[2]] * _SECOND
    from cas.tasks.choose import point_time

    return point_time(point) >= since  # local to where the point was taken, as everywhere in the command line
