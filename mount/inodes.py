"""Inode numbers: derived from what they stand for, so that forgetting costs no stability.

There are three ranges in 63 bits. Numbers below 2**26 are given out one by one, to the root and to the folders above
the points. An entry of a directory is its number (36 bits) followed by the position of the entry in it (26 bits). The
names of a hard-linked file share a number that has bit 62 set. The numbers of directories and links are hashes of what
they identify, so a directory that the kernel forgets and meets again keeps its number, and no table of all entries is
needed.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from cas.model import LinkGroup

ROOT: Final = 1
POSITION_BITS: Final = 26
POSITIONS: Final = 1 << POSITION_BITS
_DIRECTORY_BITS: Final = 36
_LINK: Final = 1 << 62

T = TypeVar("T")


def entry_inode(directory: int, position: int) -> int:
    """The inode of the entry at `position` (from 0) of a directory."""
    return directory << POSITION_BITS | position


def split_entry(inode: int) -> tuple[int, int]:
    """The directory number and the position in an entry's inode."""
    return inode >> POSITION_BITS, inode & (POSITIONS - 1)


def is_special(inode: int) -> bool:
    """Whether it is the root or a folder above the points."""
    return inode < POSITIONS


def is_link(inode: int) -> bool:
    """Whether it stands for a file with several names."""
    return bool(inode & _LINK)


def directory_number(point: bytes, inode: int) -> int:
    """Where to look first for the number of the directory that has `inode`; never 0."""
    digest = blake2b(inode.to_bytes(8, "little") + point, digest_size=8).digest()
    return int.from_bytes(digest, "little") % ((1 << _DIRECTORY_BITS) - 1) + 1


def next_directory_number(number: int) -> int:
    """Where to look next when another directory has the number."""
    return number % ((1 << _DIRECTORY_BITS) - 1) + 1


def link_inode(point: bytes, group: LinkGroup) -> int:
    """The inode of a hard-linked file of a point."""
    digest = blake2b(b"%d %d %d %d %b " % group + point, digest_size=8).digest()
    return _LINK | int.from_bytes(digest, "little") >> 2


class Table(Generic[T]):
    """Things by number: those that somebody holds, and of the others the most recently used. Guarded by its owner."""

    def __init__(self, idle: int) -> None:
        """`idle` bounds the things kept that nobody holds."""
        self._most_idle = idle
        self._held: dict[int, tuple[T, int]] = {}
        self._idle: OrderedDict[int, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held) + len(self._idle)

    def get(self, number: int) -> T | None:
        """The thing of that number, or None."""
        held = self._held.get(number)
        if held is not None:
            return held[0]
        thing = self._idle.get(number)
        if thing is not None:
            self._idle.move_to_end(number)
        return thing

    def add(self, number: int, thing: T) -> None:
        """Keep it, held by nobody yet."""
        if number not in self._held:
            self._idle[number] = thing
            self._trim()

    def hold(self, number: int, thing: T, count: int = 1) -> None:
        """Keep it until `count` more releases."""
        held = self._held.get(number)
        if held is None:
            self._idle.pop(number, None)
            self._held[number] = (thing, count)
        else:
            self._held[number] = (held[0], held[1] + count)

    def release(self, number: int, count: int = 1) -> None:
        """Undo `count` holds. A number that nobody holds is ignored: the kernel may know more than a new process."""
        held = self._held.get(number)
        if held is None:
            return
        if held[1] > count:
            self._held[number] = (held[0], held[1] - count)
        else:
            del self._held[number]
            self._idle[number] = held[0]
            self._trim()

    def _trim(self) -> None:
        while len(self._idle) > self._most_idle:
            self._idle.popitem(last=False)
