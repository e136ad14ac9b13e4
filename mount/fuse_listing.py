"""Listings as the kernel reads them: names together with attributes, one reply after the other."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final

from cas.errors import BackdriveError
from mount import fuse_wire as wire
from mount.fuse_attributes import FOR_EVER, SHORT, Shown
from mount.inodes import is_link
from mount.view import DirectoryHandle, Entry, MustWait, View

_LISTING: Final = 1 << 20  # bytes; the largest part of a listing in one reply
_MANY: Final = 1 << 15  # entries of a directory that the kernel is given to keep, whoever lists it
_LOOKUPS: Final = 64  # of entries beyond these, until it is given all to keep
_LARGE: Final = 256  # directories with more entries than that, of which something is remembered


class _Large:
    """Directories so large that the kernel should not keep all of their entries only because somebody lists the names.

    An inode costs the kernel a KiB, and more time than the rest of its listing. Who wants the attributes too has each
    looked up; when that is seen, the kernel is given the rest at once.
    """

    def __init__(self) -> None:
        self._lookups: dict[int, int] = {}

    def note(self, node: int) -> None:
        """An entry of the directory was looked up."""
        count = self._lookups.get(node)
        if count is not None:
            self._lookups[node] = count + 1

    def linked(self, node: int, start: int) -> bool:
        """Whether the kernel is to keep the entries after `start`, from where somebody lists on."""
        if start < _MANY:
            self._lookups.pop(node, None)
            return True
        if node not in self._lookups:
            if len(self._lookups) >= _LARGE:
                self._lookups.clear()
            self._lookups[node] = 0
        return self._lookups.get(node, 0) >= _LOOKUPS


class Listings:
    """The directories of a view."""

    def __init__(self, view: View, shown: Shown) -> None:
        self._view = view
        self._shown = shown
        self._large = _Large()
        self._buffer = bytearray(_LISTING)  # of the thread that reads requests
        self._snapshots: dict[int, DirectoryHandle] = {}  # of folders above the points, as they were when listed

    def looked_up(self, node: int) -> None:
        """An entry of a directory was asked for by its name."""
        self._large.note(node)

    def readdirplus(self, node: int, body: memoryview, wait: bool) -> memoryview:
        """Cookies 1 and 2 follow `.` and `..`; 2 + n follows the entry with the view's cookie n."""
        _, start, size = wire.READ_IN.unpack_from(body)
        handle = self._open(node, start, wait)
        linked = self._large.linked(node, start)
        size = min(size, _LISTING)
        buffer = bytearray(size) if wait else self._buffer
        try:
            position = 0
            for number, name, inode in ((1, b".", handle.inode), (2, b"..", handle.parent_inode)):
                if start < number:
                    _pack_dot(buffer, position, number, name, inode)
                    position += wire.direntplus_size(len(name))
            cookie = max(start - 2, 0)
            try:
                while True:
                    entries = self._view.entries(handle, cookie, wait=wait)
                    position, last, full = self._pack(buffer, position, size, entries, linked)
                    if full or not last:
                        break
                    cookie = last
            except (BackdriveError, MustWait):
                if not position:
                    raise
                # Some entries are in the reply already: the kernel gets these, and meets the fault when it goes on.
        finally:
            self._view.close_directory(handle)
        return memoryview(buffer)[:position]

    def _open(self, node: int, start: int, wait: bool) -> DirectoryHandle:
        if self._view.is_lasting(node):
            return self._view.open_directory(node, wait=wait)
        # A listing goes on with what it began with, whatever has come and gone meanwhile.
        handle = self._snapshots.get(node) if start else None
        if handle is None:
            handle = self._snapshots[node] = self._view.open_directory(node, wait=wait)
        return handle

    def _pack(
        self, buffer: bytearray, position: int, end: int, entries: Iterator[Entry], linked: bool
    ) -> tuple[int, int, bool]:
        """Put entries into the reply: where they end, the last one's cookie (0: none), whether more do not fit.

        With `linked`, the kernel keeps what it learns of each.
        """
        shown = self._shown.values
        pack_into, name_at = wire.DIRENTPLUS.pack_into, wire.DIRENTPLUS.size
        held = held_inode = last = 0
        for cookie, name, attributes in entries:
            length = len(name)
            following = position + (name_at + length + 7 & ~7)
            if following > end:
                self._view.hold(held_inode, held)
                return position, last, True
            inode = attributes.inode
            node, name_valid, valid = inode, FOR_EVER, FOR_EVER
            if not linked:
                node = 0
            elif not attributes.lasting:
                node, name_valid, valid = self._shown.node(attributes), SHORT, 0
            elif is_link(inode):
                self._view.hold(inode)
            else:
                held += 1
                held_inode = inode  # all of them belong to this directory: one count for it is enough
            values = shown(attributes, attributes.mtime)
            kind = attributes.mode >> 12
            # fmt: off
            pack_into(buffer, position, node, 0, name_valid, valid, 0, 0, *values, inode, cookie + 2, length, kind)
            # fmt: on
            position += name_at
            buffer[position : position + length] = name
            position = following
            last = cookie
        self._view.hold(held_inode, held)
        return position, last, False


def _pack_dot(buffer: bytearray, position: int, cookie: int, name: bytes, inode: int) -> None:
    """`.` and `..`: node 0, so the kernel takes no more than the type and the number."""
    values = (0,) * 22
    wire.DIRENTPLUS.pack_into(buffer, position, *values, inode, cookie, len(name), stat.S_IFDIR >> 12)
    at = position + wire.DIRENTPLUS.size
    buffer[at : at + len(name)] = name
