"""The folders above the points, in one of two layouts.

    time   <machine>/<YYYY-MM-DD HH.MM.SS>, in the local time of the place where the point was taken; <machine>/latest
    gmt    <machine>/@GMT-YYYY.MM.DD-HH.MM.SS, in UTC: the names that Samba's vfs_shadow_copy2 looks for

With one machine alone its points may be at the root. New points appear, and points that retention removes disappear,
while a drive is open.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from cas.errors import BackdriveError
from cas.ids import PointId
from cas.model import Point
from mount.inodes import POSITIONS, ROOT

LATEST: Final = b"latest"
REFRESH_SECONDS: Final = 1.5  # the kernel may keep what it was told for as long again
_SECOND: Final = 1_000_000_000


class Layout(StrEnum):
    """How points are named."""

    TIME = "time"
    GMT = "gmt"


@dataclass(frozen=True, slots=True)
class PointFolder:
    """One point in its machine's folder."""

    inode: int
    name: bytes
    parent: int  # inode
    point: Point


@dataclass(frozen=True, slots=True)
class Latest:
    """The symlink to a machine's newest point."""

    inode: int
    machine: MachineFolder


@dataclass(slots=True)
class MachineFolder:
    """One machine; `points` by name, in the order of the names."""

    inode: int
    name: bytes
    latest: Latest | None = None  # only where the layout has one
    points: dict[bytes, PointFolder] = field(default_factory=dict)
    newest: PointFolder | None = None


Place = MachineFolder | PointFolder | Latest


def folder_name(point: Point) -> bytes:
    """When the point was taken, in the local time of the place where it was, as a file name legal everywhere."""
    local = datetime.fromtimestamp(point.started // _SECOND, UTC) + timedelta(seconds=point.utc_offset)
    return local.strftime("%Y-%m-%d %H.%M.%S").encode()


def gmt_name(second: int) -> bytes:
    """A time, in seconds since 1970, as Windows names previous versions."""
    return datetime.fromtimestamp(second, UTC).strftime("@GMT-%Y.%m.%d-%H.%M.%S").encode()


def _names(point: Point, layout: Layout) -> Iterator[bytes]:
    """The names that a point may have, the best first: two points may have been taken in the same second."""
    if layout is Layout.GMT:
        # Nothing but a time may stand there, so the later of two is said to be of the next second.
        return map(gmt_name, itertools.count(point.started // _SECOND))
    name = folder_name(point)
    return itertools.chain([name], (b"%b (%d)" % (name, number) for number in itertools.count(2)))


def machine_name(machine: str) -> bytes:
    """A machine's name as a file name."""
    name = machine.encode("utf-8", "surrogateescape").replace(b"/", b"_").replace(b"\0", b"_")
    return b"unnamed" if name in (b"", b".", b"..") else name


class Timeline:
    """Machines and points by name, brought up to date at most every few seconds. Thread safe."""

    def __init__(
        self,
        points: Callable[[], Sequence[Point]],
        clock: Callable[[], float] = time.monotonic,
        *,
        layout: Layout = Layout.TIME,
        flat: bool = False,
    ) -> None:
        """`points` gives all points, oldest first; it may take long, and raise a BackdriveError. Called here first.

        With `flat` they are those of one machine, and stand at the root.
        """
        self.problem: BackdriveError | None = None  # why the last refresh did not happen
        self._layout = layout
        self._ask = points
        self._clock = clock
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._places: dict[int, Place] = {}  # whatever was shown once stays usable for those who are inside
        self._machines: dict[bytes, MachineFolder] = {}
        self._named: dict[PointId, PointFolder] = {}
        self._next_inode = ROOT + 1
        self.top: Final = self._new_machine(b"", ROOT) if flat else None
        self._take(points())
        self._asked = clock()

    @property
    def due(self) -> bool:
        """Whether `refresh` would ask again."""
        return self._clock() - self._asked >= REFRESH_SECONDS

    def refresh(self) -> None:
        """Learn of new points, where the last time is a while ago. Keeps what it knows when the vault is away.

        While another thread asks, what is known is as good: nobody waits behind a vault that does not answer.
        """
        if not self._asking.acquire(blocking=False):
            return
        try:
            if not self.due:
                return
            try:
                points = self._ask()
            except BackdriveError as error:
                self.problem = error
            else:
                self.problem = None
                self._take(points)
            self._asked = self._clock()
        finally:
            self._asking.release()

    def machines(self) -> list[MachineFolder]:
        """All of them, by name."""
        return list(self._machines.values())

    def entries(self, folder: MachineFolder | None) -> list[tuple[bytes, Place]]:
        """What is in a machine's folder, or, with None, in the folder of the machines; by name."""
        if folder is None:
            return list(self._machines.items())
        points: list[tuple[bytes, Place]] = list(folder.points.items())
        if points and folder.latest is not None:
            points.append((LATEST, folder.latest))
        return points

    def entry(self, folder: MachineFolder | None, name: bytes) -> Place | None:
        """One entry of such a folder, or None."""
        if folder is None:
            return self._machines.get(name)
        if name == LATEST and folder.points:
            return folder.latest
        return folder.points.get(name)

    def place(self, inode: int) -> Place | None:
        """What was given this inode."""
        return self._places.get(inode)

    def path(self, point: PointFolder) -> list[bytes]:
        """The names on the way to a point's folder."""
        machine = self._places.get(point.parent)
        above = machine.name if isinstance(machine, MachineFolder) else b""
        return [above, point.name] if above else [point.name]

    @property
    def count(self) -> int:
        """How many points there are."""
        return sum(len(machine.points) for machine in self.machines())

    def newest(self) -> list[Point]:
        """Each machine's newest point."""
        return [machine.newest.point for machine in self.machines() if machine.newest is not None]

    def _take(self, points: Sequence[Point]) -> None:
        with self._lock:
            groups: dict[bytes, list[Point]] = {b"": []} if self.top is not None else {}
            for point in points:
                groups.setdefault(b"" if self.top is not None else machine_name(point.machine), []).append(point)
            machines: dict[bytes, MachineFolder] = {}
            for name in sorted(groups):
                machine = self.top or self._machines.get(name) or self._new_machine(name, self._number())
                shown = self._name_points(machine.inode, groups[name])
                machine.newest = shown[-1] if shown else None
                machine.points = {folder.name: folder for folder in sorted(shown, key=lambda folder: folder.name)}
                machines[name] = machine
            for name in self._machines.keys() - machines.keys():
                gone = self._machines[name]  # somebody may still be inside
                gone.points, gone.newest = {}, None
            self._machines = machines
            present = {point.id for point in points}
            self._named = {key: folder for key, folder in self._named.items() if key in present}

    def _new_machine(self, name: bytes, inode: int) -> MachineFolder:
        machine = self._places[inode] = MachineFolder(inode, name)
        if self._layout is Layout.TIME:
            machine.latest = Latest(self._number(), machine)
            self._places[machine.latest.inode] = machine.latest
        return machine

    def _name_points(self, parent: int, points: list[Point]) -> list[PointFolder]:
        """Folders for points, oldest first. A point keeps the name under which it was shown before."""
        taken = {self._named[point.id].name for point in points if point.id in self._named}
        folders = []
        for point in points:
            folder = self._named.get(point.id)
            if folder is None:
                name = next(name for name in _names(point, self._layout) if name not in taken)
                taken.add(name)
                folder = self._named[point.id] = PointFolder(self._number(), name, parent, point)
                self._places[folder.inode] = folder
            folders.append(folder)
        return folders

    def _number(self) -> int:
        number = self._next_inode
        if number >= POSITIONS:
            raise OverflowError("more points than one mount can show")
        self._next_inode = number + 1
        return number
