"""The folders above the points: `<machine>/<YYYY-MM-DD HH.MM.SS>` and `<machine>/latest`.

New points appear in them, and points that retention removes disappear, while a drive is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cas.errors import BackdriveError
from cas.ids import PointId
from cas.model import Point
from mount.inodes import POSITIONS, ROOT

LATEST: Final = b"latest"
REFRESH_SECONDS: Final = 3.0


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
    latest: Latest = field(init=False)
    points: dict[bytes, PointFolder] = field(default_factory=dict)
    newest: PointFolder | None = None


Place = MachineFolder | PointFolder | Latest


def folder_name(point: Point) -> bytes:
    """When the point was taken, in the local time of the place where it was, as a file name legal everywhere."""
    local = datetime.fromtimestamp(point.started // 1_000_000_000, UTC) + timedelta(seconds=point.utc_offset)
    return local.strftime("%Y-%m-%d %H.%M.%S").encode()


def machine_name(machine: str) -> bytes:
    """A machine's name as a file name."""
    name = machine.encode("utf-8", "surrogateescape").replace(b"/", b"_").replace(b"\0", b"_")
    return b"unnamed" if name in (b"", b".", b"..") else name


class Timeline:
    """Machines and points by name, brought up to date at most every few seconds. Thread safe."""

    def __init__(self, points: Callable[[], Sequence[Point]], clock: Callable[[], float] = time.monotonic) -> None:
        """`points` gives all points, oldest first; it may take long, and raise a BackdriveError. Called here first."""
        self.problem: BackdriveError | None = None  # why the last refresh did not happen
        self._ask = points
        self._clock = clock
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._places: dict[int, Place] = {}  # whatever was shown once stays usable for those who are inside
        self._machines: dict[bytes, MachineFolder] = {}
        self._named: dict[PointId, PointFolder] = {}
        self._next_inode = ROOT + 1
        self._take(points())
        self._asked = clock()

    @property
    def due(self) -> bool:
        """Whether `refresh` would ask again."""
        return self._clock() - self._asked >= REFRESH_SECONDS

    def refresh(self) -> None:
        """Learn of new points, where the last time is a while ago. Keeps what it knows when the vault is away."""
        with self._asking:
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

    def machines(self) -> list[MachineFolder]:
        """All of them, by name."""
        return list(self._machines.values())

    def machine(self, name: bytes) -> MachineFolder | None:
        """One machine's folder."""
        return self._machines.get(name)

    def place(self, inode: int) -> Place | None:
        """What was given this inode."""
        return self._places.get(inode)

    def newest(self) -> list[Point]:
        """Each machine's newest point."""
        return [machine.newest.point for machine in self.machines() if machine.newest is not None]

    def _take(self, points: Sequence[Point]) -> None:
        with self._lock:
            groups: dict[bytes, list[Point]] = {}
            for point in points:
                groups.setdefault(machine_name(point.machine), []).append(point)
            machines: dict[bytes, MachineFolder] = {}
            for name in sorted(groups):
                machine = self._machines.get(name) or self._new_machine(name)
                shown = self._name_points(machine.inode, groups[name])
                machine.newest = shown[-1]
                machine.points = {folder.name: folder for folder in sorted(shown, key=lambda folder: folder.name)}
                machines[name] = machine
            self._machines = machines
            present = {point.id for point in points}
            self._named = {key: folder for key, folder in self._named.items() if key in present}

    def _new_machine(self, name: bytes) -> MachineFolder:
        machine = MachineFolder(self._number(), name)
        self._places[machine.inode] = machine
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
                base = name = folder_name(point)
                count = 1
                while name in taken:
                    count += 1
                    name = b"%b (%d)" % (base, count)
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
