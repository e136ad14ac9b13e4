"""Deleting points, and taking them back. A deleted point is kept for a while; after that a collect purges it.

Deleting moves: `deleted/P` is written, and then `points/P` removed. So a credential that can only create and read
cannot delete, and whatever is interrupted, the point is in one of the two places. Where it is in both, it is alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from cas.errors import InvalidRequest, ObjectExists, PointNotFound
from cas.model import Point
from cas.repository import Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.lifecycle import Deleted
from cas.tasks.announce import DAY
from cas.tasks.deleted import DeletedPoint, deletion_number, deletions, last_deletion, sessions_of

KEEP_DAYS: Final = 14
KEEP_LEAST: Final = 14
KEEP_MOST: Final = 180

Clock = Callable[[], int]


def confirmation(points: Iterable[Point]) -> str:
    """What a person types to purge these points at once: the first eight digits of the only one's id, or of the first
    one's, and how many there are."""
    ids = [point.id[:8] for point in points]
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def delete_points(
    repository: Repository,
    points: Iterable[Point],
    clock: Clock,
    *,
    keep_days: int = KEEP_DAYS,
    purge_now: bool = False,
) -> list[DeletedPoint]:
    """Delete points so that they can be taken back for `keep_days` days; with `purge_now`, until the next collect.

    A point that is deleted already is left as it is, or, with `purge_now`, purged. Raises InvalidRequest for another
    number of days, VaultReadOnly where the credential may not delete, and the vault's errors.
    """
    if not KEEP_LEAST <= keep_days <= KEEP_MOST:
        raise InvalidRequest(f"Deleted points are kept {KEEP_LEAST} to {KEEP_MOST} days, not {keep_days}.")
    now = clock()
    return [_delete(repository, point, now, now if purge_now else now + keep_days * DAY) for point in points]


def _delete(repository: Repository, point: Point, now: int, purge_after: int) -> DeletedPoint:
    vault, layout = repository.vault, repository.layout
    names = deletions(repository).get(point.id, [])
    known = last_deletion(repository, names)
    live = repository.has_point(point.id)
    if known is not None and not live and known.purge_after <= purge_after:
        return known
    if known is not None and not live:
        payload = known.payload
    elif not live:
        raise _gone(point)
    else:
        payload = repository.get_object(ObjectKind.POINT, layout.points + point.id, cached=True)
    # What is there of an earlier deletion goes last: whatever happens, the point is in one of the places.
    number = 1 + max((deletion_number(name) for name in names), default=-1)
    name = layout.deleted + point.id + (f".{number}" if number else "")
    try:
        repository.put_object(ObjectKind.DELETED, name, formats.encode(Deleted(payload, now, purge_after)))
    except ObjectExists:
        pass  # somebody else deletes it just now
    for entry in sessions_of(repository, point.id):
        vault.delete(entry)  # its backup has ended, or there would be no point
    vault.delete(layout.points + point.id)
    for old in names:
        vault.delete(old)
    return DeletedPoint(point, now, purge_after, payload)


def undelete_points(repository: Repository, points: Iterable[Point]) -> list[Point]:
    """Take deleted points back. Raises PointNotFound where one is gone for good, and the vault's errors."""
    wanted = list(points)
    for point in wanted:
        _undelete(repository, point)
    return wanted


def _undelete(repository: Repository, point: Point) -> None:
    live = repository.layout.points + point.id
    names = deletions(repository).get(point.id, [])
    known = last_deletion(repository, names)
    # Taking back and purging both write this name, and the vault lets one of them.
    if known is not None:
        try:
            repository.put_object(ObjectKind.POINT, live, known.payload)
        except ObjectExists:
            pass
    if not repository.has_point(point.id):
        raise _gone(point)
    for name in names:
        repository.vault.delete(name)


def _gone(point: Point) -> PointNotFound:
    return PointNotFound(f"The point {point.id[:8]} is gone for good: it was purged.", "")


def find_deleted(found: list[DeletedPoint], text: str) -> DeletedPoint:
    """The deleted point whose id starts with `text`. Raises PointNotFound."""
    matches = [known for known in found if text and known.point.id.startswith(text.lower())]
    if len(matches) == 1:
        return matches[0]
    many = f"{len(matches)} deleted points have ids" if matches else "No deleted point has an id"
    raise PointNotFound(f"{many} that start with '{text}'.", "Run 'backdrive points --deleted' to see them.")
