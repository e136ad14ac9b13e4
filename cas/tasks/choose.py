"""Which recovery point a person means, and what they call its time."""

from __future__ import annotations

from cas.errors import PointNotFound
from cas.model import Point
from cas.repository import Problems, Repository


def find_point(repository: Repository, text: str, default_machine: str | None = None) -> Point:
    """The point that a person means: `latest`, `latest@MACHINE`, an id prefix, or a prefix of its local time.

    `default_machine` is whose `latest` is meant without a name. Raises PointNotFound.
    """
    problems = Problems()
    points = repository.points(problems)
    if text == "latest" or text.startswith("latest@"):
        machine = text[7:] if "@" in text else default_machine
        own = [point for point in points if machine is None or point.machine == machine]
        if not own:
            whose = f" of {machine}" if machine else ""
            raise PointNotFound(f"There is no recovery point{whose} yet.", "Run 'backdrive backup' first.")
        return own[-1]
    matches = [point for point in points if point.id.startswith(text.lower())] if text else []
    matches = matches or [point for point in points if text and point_time(point).startswith(text.replace(" ", "T"))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = ", ".join(f"{point.id[:8]} ({point_time(point)[:19]})" for point in matches[:5])
        raise PointNotFound(f"'{text}' means {len(matches)} recovery points: {ids}{', ...' * (len(matches) > 5)}.")
    if problems.errors:
        raise problems.errors[0]
    raise PointNotFound(f"No recovery point has an id or a time that starts with '{text}'.")


def point_time(point: Point) -> str:
    """When the point was taken, in the local time of the place where it was: `2026-11-22T07:30:05`."""
    from datetime import UTC, datetime, timedelta

    local = datetime.fromtimestamp(point.started // 1_000_000_000, UTC) + timedelta(seconds=point.utc_offset)
    return local.strftime("%Y-%m-%dT%H:%M:%S")


def protects(point: Point, path: bytes) -> bool:
    """Whether a path is one of the roots of a point, or lies in one."""
    return any(path == root or path.startswith(root.rstrip(b"/") + b"/") for root in point.paths)
