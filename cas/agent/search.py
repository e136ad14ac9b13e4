"""Finding files over all recovery points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cas.agent.session import Session
from cas.model import Node, Point
from cas.tasks import browse


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that matches, in the newest point that has it."""

    path: bytes
    node: Node
    point: Point


def find_everywhere(
    session: Session, pattern: str, machine: str | None, *, ignore_case: bool = False
) -> Iterator[Found]:
    """Every path that matches in any point, once for each machine, those in newer points first.

    Only the newest point of a machine is walked whole: of an older one, what differs from the next newer one is enough.
    What cannot be read is added to the session's problems. Raises as the reader does.
    """
    reader = session.reader()
    machines: dict[str, list[Point]] = {}
    for point in reversed(session.repository.points(session.problems)):
        if machine is None or machine in (point.machine, point.machine_id):
            machines.setdefault(point.machine_id, []).append(point)
    matches = browse._matcher(pattern, ignore_case)
    for points in machines.values():
        seen: set[bytes] = set()
        for path, node, _ in browse.find(reader, points[0], pattern, ignore_case=ignore_case):
            seen.add(path)
            yield Found(path, node, points[0])
        for newer, older in pairwise(points):
            for change in browse.diff(reader, newer, older):
                if (
                    change.before is None
                    and change.after is not None
                    and change.path not in seen
                    and matches(change.path)
                ):
                    seen.add(change.path)
                    yield Found(change.path, change.after, older)


def find_in_point(session: Session, pattern: str, text: str, *, ignore_case: bool = False) -> Iterator[Found]:
    """Every path that matches in the point that `text` means. Raises PointNotFound, and as the reader does."""
    reader = session.reader()
    point = session.point(text)
    for path, node, _ in browse.find(reader, point, pattern, ignore_case=ignore_case):
        yield Found(path, node, point)
