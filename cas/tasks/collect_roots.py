"""What a collect must keep, and for whom it must wait: points, deleted points, sessions.

The order in which things are listed is what makes a collect safe without locks; `cas/FORMAT.md`, section 12, says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from cas.errors import Damaged, FormatTooNew, ObjectMissing
from cas.ids import PointId
from cas.repository import Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.layout import new_id
from cas.store.lifecycle import BACKUP, COLLECT, DRIVE, Purged, Session
from cas.tasks.announce import DAY, LIFETIME, MARGIN, SILENCE
from cas.tasks.deleted import deletions, purged_ids, read_deleted

_VOIDS_KEPT: Final = 60 * DAY  # a run that comes back after that knows by itself that it is late

Clock = Callable[[], int]


@dataclass(slots=True)
class Known:
    """A session as its objects tell. `told` is None for an object that does not open."""

    id: str
    told: dict[str, Session | None] = field(default_factory=dict)  # by object name
    followed: bool = False  # its machine has begun another backup since

    @property
    def readable(self) -> list[Session]:
        return [session for session in self.told.values() if session is not None]

    @property
    def kind(self) -> str:
        """What it is; a session that cannot be read may be a backup."""
        return next((session.kind for session in self.readable), BACKUP)

    @property
    def written(self) -> int:
        """When it was last renewed; 0 where that cannot be read."""
        return max((session.written for session in self.readable), default=0)

    @property
    def until(self) -> int:
        """How long it counts, if it is not renewed."""
        lifetime = LIFETIME.get(self.kind, LIFETIME[BACKUP])
        return self.written + (min(lifetime, SILENCE) if self.followed else lifetime) + MARGIN

    @property
    def knows(self) -> set[str]:
        """The condemned objects whose packs it does not rely on."""
        return {name for session in self.readable for name in session.knows}


@dataclass(slots=True)
class Roots:
    """What is to be kept, and whom to wait for."""

    trees: set[bytes] = field(default_factory=set)
    announced: set[bytes] = field(default_factory=set)  # trees that sessions rely on, if they are there
    points: int = 0
    deleted: int = 0  # points that can be taken back
    drives: int = 0
    holding: list[Known] = field(default_factory=list)  # sessions that rely on trees which no point has any more
    waiting: list[Known] = field(default_factory=list)  # backups under way
    working: set[str] = field(default_factory=set)  # sessions whose packs are not to be judged yet
    notes: list[str] = field(default_factory=list)


class Census:
    """Reads sessions and points; closes the door on runs that are dead, and removes what is over, if it may write."""

    def __init__(self, repository: Repository, clock: Clock, *, write: bool, own: str = "") -> None:
        """`own` is the session of the collect itself."""
        self._repository = repository
        self._clock = clock
        self._write = write
        self._own = own
        self._now = 0
        self._read: dict[str, Session | None] = {}
        self._notes: list[str] = []
        self._began: dict[str, int] | None = None

    def take(self) -> Roots:
        """Look at everything. Call it when what is condemned has been listed.

        Raises Damaged, FormatTooNew where a point cannot be read, as then nobody knows what it needs, and the vault's
        errors.
        """
        repository = self._repository
        roots = Roots(notes=self._notes)
        # Before anything is listed: a run that was silent for too long then cannot have come to its end since.
        self._now = self._clock()
        before = self._sessions()
        names, voids = repository.point_entries()
        prefix = repository.layout.points
        ended = {PointId(name.removeprefix(prefix)) for name in (*names, *voids)} | deletions(repository).keys()
        if any(known.kind == BACKUP and known.id not in ended for known in before.values()):
            ended |= purged_ids(repository)
        over: set[str] = set()
        for known in before.values():
            if self._is_over(known, ended, before):
                over.add(known.id)
                self._remove(known)
            elif known.kind == BACKUP:
                roots.waiting.append(known)
        # From here on: a run that is in neither list has ended, and its point, if one came of it, is found below.
        alive = self._points()
        gone = deletions(repository)
        now = self._sessions()
        alive |= self._points()
        gone |= deletions(repository)
        self._take_points(roots, alive, gone)
        for known in now.values():
            live = known.until > self._now and known.id not in over
            if live:
                roots.announced.update(root for session in known.readable for root in session.roots)
                roots.drives += known.kind == DRIVE
                if any(root not in roots.trees for session in known.readable for root in session.roots):
                    roots.holding.append(known)
            if live and known.kind in (BACKUP, COLLECT) and known.id != self._own and known.id not in alive:
                roots.working.add(known.id)
        return roots

    # --- sessions ---

    def _sessions(self) -> dict[str, Known]:
        layout = self._repository.layout
        found: dict[str, Known] = {}
        for entry in sorted(self._repository.vault.list(layout.sessions)):
            if entry.name not in self._read:
                try:
                    payload = self._repository.get_object(ObjectKind.SESSION, entry.name)
                    self._read[entry.name] = formats.decode(payload, Session, entry.name)
                except ObjectMissing:
                    continue  # it has ended
                except (Damaged, FormatTooNew) as error:
                    self._read[entry.name] = None
                    self._notes.append(str(error))
            identity = entry.name.removeprefix(layout.sessions).partition(".")[0]
            found.setdefault(identity, Known(identity)).told[entry.name] = self._read[entry.name]
        return found

    def _is_over(self, known: Known, ended: set[PointId], others: dict[str, Known]) -> bool:
        """Whether nothing can come of a session any more. The name of a dead backup's point is closed to it first."""
        now = self._now
        if known.kind != BACKUP:
            return known.until <= now
        if known.id in ended:
            return True
        known.followed = self._is_followed(known, others)
        if known.until > now:
            return False
        if self._write:
            self._repository.close_point(PointId(known.id), now)  # if it has committed just now, it has ended as well
        return True

    def _is_followed(self, known: Known, others: dict[str, Known]) -> bool:
        """Whether its machine has begun another backup since, which is told by a session or by a point."""
        if not known.readable:
            return False
        mine = known.readable[0]
        began = [
            session.started
            for other in others.values()
            if other.kind == BACKUP and other.id != known.id
            for session in other.readable[:1]
            if session.machine == mine.machine
        ]
        return any(started > mine.started for started in (*began, self._newest().get(mine.machine, 0)))

    def _newest(self) -> dict[str, int]:
        """When each machine's newest point was begun. A point that cannot be read is told of later."""
        if self._began is None:
            self._began = {}
            for name in self._repository.point_names():
                try:
                    point = self._repository.read_point(name)
                except (Damaged, FormatTooNew, ObjectMissing):
                    continue
                self._began[point.machine_id] = max(self._began.get(point.machine_id, 0), point.started)
        return self._began

    def _remove(self, known: Known) -> None:
        if self._write and known.id != self._own:
            for name in known.told:
                self._repository.vault.delete(name)

    # --- points ---

    def _points(self) -> set[PointId]:
        prefix = self._repository.layout.points
        return {PointId(name.removeprefix(prefix)) for name in self._repository.point_names()}

    def _take_points(self, roots: Roots, alive: set[PointId], gone: dict[PointId, list[str]]) -> None:
        repository, prefix = self._repository, self._repository.layout.points
        closed = {PointId(name.removeprefix(prefix)) for name in repository.point_entries()[1]}
        for point in sorted(alive):
            try:
                roots.trees.add(repository.read_point(prefix + point).root)
                roots.points += 1
            except ObjectMissing:
                self._take_moved(roots, point)
        for point in sorted(gone.keys() - alive):
            try:
                known = read_deleted(repository, gone[point][-1])
            except ObjectMissing:
                self._take_moved(roots, point)
                continue
            # While it is there it can be taken back; `purge` removes those whose time is over.
            if point in closed:
                roots.announced.add(known.point.root)  # its purge was interrupted: some of it may be gone
            elif self._write or known.purge_after > self._now:
                roots.trees.add(known.point.root)
                roots.deleted += 1

    def _take_moved(self, roots: Roots, point: PointId) -> None:
        """A point that was deleted or taken back since it was listed; or that was purged, and is none any more."""
        repository = self._repository
        while True:
            found = repository.has_point(point)
            names = deletions(repository).get(point, [])
            try:
                if found:
                    roots.trees.add(repository.read_point(repository.layout.points + point).root)
                elif names:
                    roots.trees.add(read_deleted(repository, names[-1]).point.root)
                elif repository.has_point(point):
                    continue
            except ObjectMissing:
                continue
            return

    def open_names(self) -> None:
        """Remove the signs that have closed names for so long that nobody comes for them any more."""
        for name in self._repository.point_entries()[1]:
            try:
                if self._repository.read_void(name) + _VOIDS_KEPT <= self._now:
                    self._repository.vault.delete(name)
            except (Damaged, ObjectMissing):
                continue  # a check tells of it


def purge(repository: Repository, now: int, *, write: bool) -> list[PointId]:
    """Remove the deleted points whose time is over; with `write` false, only tell which they are.

    That they were meant to go is recorded first, so that no check takes them for lost. Raises the vault's errors.
    """
    alive = set(repository.point_names())
    due: dict[PointId, list[str]] = {}
    for point, names in deletions(repository).items():
        live = repository.layout.points + point
        if live in alive:
            continue  # a deletion that was interrupted, or is just happening
        try:
            if read_deleted(repository, names[-1]).purge_after <= now:
                due[point] = names
        except ObjectMissing:
            continue
    if write:
        due = {point: names for point, names in due.items() if repository.close_point(point, now)}
        _record_purged(repository, due.keys())
        for names in due.values():
            for name in names:
                repository.vault.delete(name)
    return sorted(due)


def _record_purged(repository: Repository, points: Collection[PointId]) -> None:
    """Add to what was purged, in one object."""
    if not points:
        return
    layout = repository.layout
    old = [entry.name for entry in repository.vault.list(layout.purged)]
    ids = sorted(purged_ids(repository) | set(points))
    record = Purged(b"".join(bytes.fromhex(point) for point in ids))
    repository.put_object(ObjectKind.PURGED, layout.purged + new_id(), formats.encode(record))
    for name in old:
        repository.vault.delete(name)
