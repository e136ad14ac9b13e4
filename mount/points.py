"""The points that a drive shows, and keeping what they refer to.

A drive announces itself in the vault with the trees that it shows (`cas/tasks/announce.py`), so that no collect, of
whichever machine, deletes what is in them. A vault that cannot be written can be mounted all the same: a point that is
deleted for good while it is shown may then lose files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from cas.errors import BackdriveError, Damaged, FormatTooNew, ObjectMissing, PointNotFound
from cas.ids import PointId
from cas.model import Point
from cas.repository import Repository
from cas.store.lifecycle import DRIVE
from cas.tasks.announce import Announcement
from mount.filters import PointFilter

_log = logging.getLogger("backdrive.drive")

_LINGER: Final = 86_400 * 1_000_000_000  # ns for which a point is kept after it is no longer shown, for who is in it
_WAKE_SECONDS: Final = 60.0


class Keeper:
    """Tells in the vault which points are shown, and goes on telling. Thread safe."""

    def __init__(self, repository: Repository, machine: str) -> None:
        """`machine` is this machine's id."""
        self._repository = repository
        self._announcement = Announcement(repository, machine, DRIVE, time.time_ns)
        self._lock = threading.Lock()
        self._shown: dict[PointId, Point] = {}  # those of the last call
        self._left: dict[PointId, tuple[Point, int]] = {}  # no longer shown, since when (ns)
        self._announced: frozenset[PointId] = frozenset()
        self._told = ""  # the fault logged last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        """Keep the announcement up to date in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Take the announcement back."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1)
        self._tell(self._announcement.end)

    def show(self, points: Sequence[Point]) -> bool:
        """Keep these points from now on. Whether that had to be announced: one that a collect found gone before it saw
        the announcement may be lost, so the caller looks again which are there."""
        now = time.time_ns()
        with self._lock:
            gone = self._shown.keys() - {point.id for point in points}
            self._left.update({key: (self._shown[key], now) for key in gone})
            self._shown = {point.id: point for point in points}
            kept = self._kept(now)
            return not kept.keys() <= self._announced and self._announce(kept)

    def _kept(self, now: int) -> dict[PointId, Point]:
        """What is shown, and what was until not long ago."""
        self._left = {key: left for key, left in self._left.items() if now - left[1] < _LINGER}
        return {key: point for key, (point, _) in self._left.items()} | self._shown

    def _announce(self, kept: dict[PointId, Point]) -> bool:
        roots = sorted({bytes(point.root) for point in kept.values()})
        first = not self._announced
        if not self._tell(lambda: self._announcement.begin(roots) if first else self._announcement.renew(roots)):
            return False
        self._announced = frozenset(kept)
        return True

    def _run(self) -> None:
        while not self._stop.wait(_WAKE_SECONDS):
            with self._lock:
                kept = self._kept(time.time_ns())
                if kept and self._announced != frozenset(kept):
                    self._announce(kept)
                elif self._announced:
                    self._tell(self._announcement.keep_up)

    def _tell(self, call: Callable[[], None]) -> bool:
        """Whether that could be told. The drive matters more than its announcement, which is tried again."""
        try:
            call()
        except BackdriveError as error:
            if error.args[0] != self._told:
                self._told = error.args[0]
                _log.warning("the vault cannot be told what this drive shows: %s", error.args[0])
            return False
        self._told = ""
        return True


class PointSource:
    """The points of a repository that a filter leaves, of which each is read once."""

    def __init__(self, repository: Repository, only: PointFilter, keeper: Keeper) -> None:
        self._repository = repository
        self._only = only
        self._keeper = keeper
        self._known: dict[str, Point | None] = {}  # by object name; None: it cannot be read
        self._told = ""  # the fault logged last

    def __call__(self) -> list[Point]:
        """Oldest first. Raises the vault's errors and CacheUnusable."""
        try:
            points = self._look()
        except BackdriveError as error:
            if error.args[0] != self._told:
                self._told = error.args[0]
                _log.error("new points cannot be looked for: %s", error.args[0])
            raise
        self._told = ""
        return points

    def _look(self) -> list[Point]:
        names = self._repository.point_names()
        if any(name not in self._known for name in names):
            for problem in self._repository.refresh().errors:
                _log.error("%s", problem.args[0])
        self._known = {name: self._known[name] if name in self._known else self._read(name) for name in names}
        points = self._chosen()
        if self._keeper.show(points):
            there = set(self._repository.point_names())
            self._known = {name: point for name, point in self._known.items() if name in there}
            points = self._chosen()
        return sorted(points, key=lambda point: (point.started, point.id))

    def machines(self) -> list[str]:
        """The names of the machines that have points, whichever of these the filter leaves, where that is last read."""
        return sorted({point.machine for point in self._known.values() if point is not None})

    def has_machine(self, machine: str) -> bool:
        """Whether a machine of this name or id has points."""
        return any(p is not None and machine in (p.machine, p.machine_id) for p in self._known.values())

    def _chosen(self) -> list[Point]:
        now = time.time_ns()
        return [point for point in self._known.values() if point is not None and self._only.matches(point, now)]

    def _read(self, name: str) -> Point | None:
        """A point; None where it cannot be read."""
        try:
            return self._repository.read_point(name)
        except ObjectMissing:
            pass  # deleted just now
        except (Damaged, FormatTooNew) as error:
            _log.error("%s", error.args[0])
        return None


def one_point(repository: Repository, identity: PointId, keeper: Keeper) -> Point:
    """A point by its whole id: the others are not looked at, however many there are. Raises PointNotFound."""
    try:
        point = repository.read_point(repository.layout.points + identity)
    except ObjectMissing:
        point = None
    if point is not None:
        keeper.show([point])
    if point is None or not repository.has_point(identity):  # asked after that was told
        raise PointNotFound(f"There is no recovery point {identity}.")
    return point
