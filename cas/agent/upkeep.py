"""Deleting, taking back, retention and collect, as this machine does them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cas.agent.jobs import recorded
from cas.agent.runs import Edge
from cas.agent.session import Session
from cas.errors import BackdriveError
from cas.events import Listener, Warning
from cas.model import Point
from cas.repository import Problems
from cas.tasks import delete, deleted
from cas.tasks.choose import find_point
from cas.tasks.deleted import DeletedPoint

if TYPE_CHECKING:
    from cas.tasks.collect import CollectReport, CollectRequest


def list_deleted(session: Session, machine: str | None) -> tuple[list[DeletedPoint], list[BackdriveError]]:
    """The points that can be taken back, oldest first, and what cannot be read."""
    problems = Problems()
    found = deleted.deleted_points(session.repository, problems)
    return [known for known in found if machine is None or known.point.machine == machine], problems.errors


def points_to_delete(session: Session, ids: list[str], *, also_deleted: bool) -> list[Point]:
    """The points that a person means, each once; with `also_deleted`, of deleted ones too. Raises PointNotFound."""
    gone = deleted.deleted_points(session.repository, Problems()) if also_deleted else []
    found: dict[str, Point] = {}
    for text in ids:
        known = [each for each in gone if text and each.point.id.startswith(text.lower())]
        point = known[0].point if len(known) == 1 else find_point(session.repository, text, None)
        found[point.id] = point
    return list(found.values())


def run_delete(session: Session, points: list[Point], edge: Edge, *, purge_now: bool) -> list[DeletedPoint]:
    """Delete points and record the job. Raises what `delete_points` raises."""
    with recorded(session.home, "delete", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        found = delete.delete_points(session.repository, points, edge.clock, purge_now=purge_now)
        notes.stats = {"points": len(found)}
    return found


def run_undelete(session: Session, ids: list[str], edge: Edge) -> list[Point]:
    """Take deleted points back and record the job. Raises PointNotFound, and what `undelete_points` raises."""
    gone = deleted.deleted_points(session.repository, Problems())
    points = {known.point.id: known.point for known in (delete.find_deleted(gone, text) for text in ids)}
    with recorded(session.home, "undelete", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        found = delete.undelete_points(session.repository, points.values())
        notes.stats = {"points": len(found)}
    return found


def run_collect(session: Session, request: CollectRequest, edge: Edge, listen: Listener) -> CollectReport:
    """Collect and record the job. Raises what `collect` raises, ObjectDamaged where the vault's header is damaged."""
    from cas.tasks.collect import collect

    if session.damage is not None:
        raise session.damage
    if request.dry_run:
        return collect(session.repository, request, edge.clock, listen)
    with recorded(session.home, "collect", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        report = collect(session.repository, request, edge.clock, listen)
        notes.stats = {name: count for name, count in asdict(report).items() if isinstance(count, int)}
        notes.warnings = [Warning(b"", str(error)) for error in report.problems]
    return report
