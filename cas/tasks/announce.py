"""Announcements: who is at work, told in the vault, so that a collect keeps what they rely on.

A session is an object `sessions/N`, and `sessions/N.1`, `sessions/N.2`, ... as it goes on: the vault changes no object.
What it says is in `cas/FORMAT.md`, section 12. For a backup, N is the point that it will write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cas.errors import BackupOverdue, VaultReadOnly
from cas.ids import PointId
from cas.model import Point
from cas.repository import Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.layout import new_id
from cas.store.lifecycle import BACKUP, COLLECT, DRIVE, Session
from cas.tasks.deleted import deletions

HOUR: Final = 3_600_000_000_000  # ns
DAY: Final = 24 * HOUR
MARGIN: Final = HOUR  # by which clocks may differ
LIFETIME: Final = {BACKUP: 7 * DAY, DRIVE: 2 * HOUR, COLLECT: DAY}
"""How long a session counts after it was last renewed."""

RENEWAL: Final = {BACKUP: 6 * HOUR, DRIVE: HOUR, COLLECT: 6 * HOUR}
"""How often it is renewed."""

SILENCE: Final = DAY
"""A backup that was silent for so long has ended when its machine has begun another one since."""

Clock = Callable[[], int]


class Announcement:
    """One session. Thread safe. Times are ns."""

    def __init__(self, repository: Repository, machine: str, kind: str, clock: Clock, identity: str = "") -> None:
        """`machine` is its id; `identity` is the point that a backup will write. Nothing is told before `begin`."""
        self.id: Final = identity or new_id()
        self._repository = repository
        self._machine = machine
        self._kind = kind
        self._clock = clock
        self._lock = threading.Lock()
        self._names: list[str] = []  # its objects that may still be there
        self._count = 0
        self._started = 0
        self._written = 0
        self._roots: list[bytes] = []
        self._knows: list[str] = []

    # --- what every session does ---

    def begin(self, roots: Sequence[bytes] = ()) -> None:
        """Tell it, with trees that are to be kept. Raises the vault's errors.

        A tree is safe when it was seen in the vault as that of a point or a deleted point *after* this returned.
        """
        self._started = self._clock()
        self._put(roots, ())

    def renew(self, roots: Sequence[bytes] | None = None, knows: Sequence[str] | None = None) -> None:
        """Tell it again, with other roots or condemned objects where given. Raises the vault's errors."""
        with self._lock:
            old = list(self._names)
        self._put(self._roots if roots is None else roots, self._knows if knows is None else knows)
        if self._kind == DRIVE:
            self._forget(old)

    def keep_up(self) -> None:
        """Renew it where that is due: call it now and then."""
        if self._clock() - self._written >= RENEWAL[self._kind]:
            self.renew()

    @property
    def due(self) -> int:
        """When it is to be renewed."""
        return self._written + RENEWAL[self._kind]

    def end(self) -> None:
        """Take it back, where this credential may delete. Raises the vault's errors."""
        with self._lock:
            names = list(self._names)
        self._forget(names)

    def _put(self, roots: Sequence[bytes], knows: Sequence[str]) -> None:
        layout, now = self._repository.layout, self._clock()
        with self._lock:
            name = layout.sessions + self.id + (f".{self._count}" if self._count else "")
            self._count += 1
            session = Session(self._machine, self._started, self._kind, now, list(roots), list(knows))
            self._repository.put_object(ObjectKind.SESSION, name, formats.encode(session))
            self._names.append(name)
            self._roots, self._knows, self._written = list(roots), list(knows), now

    def _forget(self, names: Iterable[str]) -> None:
        try:
            for name in names:
                self._repository.vault.delete(name)
                with self._lock:
                    self._names.remove(name)
        except VaultReadOnly:
            pass  # a credential that cannot delete: a collect removes them when their time is over

    # --- backups ---

    def must_be_timely(self) -> None:
        """Raise BackupOverdue where it was not renewed in time: a collect may not have waited for this run."""
        if not 0 <= self._clock() - self._written < LIFETIME[self._kind]:
            raise BackupOverdue

    # --- drives ---

    def show(self, points: Iterable[Point]) -> list[Point]:
        """Keep what these points refer to, from now on and until the session ends or is not renewed.

        Returns those that were still there when it was told, so that nothing of them is collected. Raises the vault's
        errors, VaultReadOnly where nothing can be announced.
        """
        shown = list(points)
        roots = sorted({bytes(point.root) for point in shown})
        if self._started:
            self.renew(roots)
        else:
            self.begin(roots)
        return [point for point in shown if still_there(self._repository, point.id)]


def still_there(repository: Repository, point: PointId) -> bool:
    """Whether the point is in the vault, deleted or not, and not purged. Raises the vault's errors."""
    if repository.has_point(point) or point in deletions(repository):
        return True
    return repository.has_point(point)  # it may have been taken back meanwhile


def announce_backup(
    repository: Repository, machine: str, point: PointId, clock: Clock, choose: Callable[[set[str]], Point | None]
) -> tuple[Announcement, Point | None]:
    """Announce a backup that will write `point` and compares with the point that `choose` gives.

    `choose` is asked again, with the ids of those that are gone, where a point was purged at that very moment.
    """
    session = Announcement(repository, machine, BACKUP, clock, point)
    gone: set[str] = set()
    parent = choose(gone)
    session.begin(() if parent is None else (parent.root,))
    repository.note_session(point)
    while parent is not None and not still_there(repository, parent.id):
        gone.add(parent.id)
        parent = choose(gone)
        if parent is not None:
            session.renew((parent.root,))
    return session, parent
