"""What is there of points that were deleted, and of sessions: looking, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from cas.errors import BackdriveError, Damaged, FormatTooNew, ObjectMissing
from cas.ids import PointId
from cas.model import Point
from cas.repository import Problems, Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.lifecycle import Deleted, Purged


@dataclass(frozen=True, slots=True)
class DeletedPoint:
    """A point that can be taken back until `purge_after`. Times are ns."""

    point: Point
    deleted: int
    purge_after: int
    payload: bytes  # of the point's own object


def sessions_of(repository: Repository, session: str) -> list[str]:
    """The objects of a session, the newest last."""
    layout = repository.layout
    names = (entry.name for entry in repository.vault.list(layout.sessions))
    own = [name for name in names if name.removeprefix(layout.sessions).partition(".")[0] == session]
    return sorted(own, key=lambda name: (len(name), name))


def deleted_points(repository: Repository, problems: Problems) -> list[DeletedPoint]:
    """Every point that is deleted and can be taken back, the oldest first. What cannot be read goes to `problems`."""
    alive = set(repository.point_names())
    found = []
    for point, names in deletions(repository).items():
        if repository.layout.points + point in alive:
            continue  # its deletion was interrupted
        try:
            found.append(read_deleted(repository, names[-1]))
        except ObjectMissing:
            continue  # it was taken back or purged just now
        except (Damaged, FormatTooNew) as error:
            problems.errors.append(error)
    return sorted(found, key=lambda known: (known.point.started, known.point.id))


def deletions(repository: Repository) -> dict[PointId, list[str]]:
    """The names of what tells of each point's deletion, interrupted ones too; the last of them counts."""
    found: dict[PointId, list[str]] = {}
    prefix = repository.layout.deleted
    for name in sorted((entry.name for entry in repository.vault.list(prefix)), key=deletion_number):
        found.setdefault(PointId(name.removeprefix(prefix).partition(".")[0]), []).append(name)
    return found


def deletion_number(name: str) -> int:
    """The place of a deletion among those of its point."""
    number = name.rpartition("/")[2].partition(".")[2]
    return int(number) if number.isdecimal() else 0


def read_deleted(repository: Repository, name: str) -> DeletedPoint:
    """A deleted point by its object name. Raises ObjectDamaged, ObjectMissing, FormatTooNew."""
    found = formats.decode(repository.get_object(ObjectKind.DELETED, name), Deleted, name)
    point = repository.parse_point(found.point, name.partition(".")[0])
    return DeletedPoint(point, found.deleted, found.purge_after, found.point)


def is_there(repository: Repository, name: str) -> bool:
    """Whether the vault has an object. Raises the vault's errors."""
    try:
        repository.vault.size(name)
    except ObjectMissing:
        return False
    return True


def last_deletion(repository: Repository, names: list[str]) -> DeletedPoint | None:
    """The last of them that can be read."""
    for name in reversed(names):
        try:
            return read_deleted(repository, name)
        except (ObjectMissing, Damaged):
            continue
    return None


def purged_ids(repository: Repository, problems: Problems | None = None) -> set[PointId]:
    """The points that were purged: that they are gone is no loss. What cannot be read goes to `problems`."""
    found: set[PointId] = set()
    for entry in repository.vault.list(repository.layout.purged):
        try:
            payload = repository.get_object(ObjectKind.PURGED, entry.name, cached=True)
            found.update(map(PointId, formats.decode(payload, Purged, entry.name).ids()))
        except ObjectMissing:
            continue  # merged into another one
        except BackdriveError as error:
            if problems is None or not isinstance(error, Damaged | FormatTooNew):
                raise
            problems.errors.append(error)
    return found
