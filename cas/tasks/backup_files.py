"""The part of a backup that reads: one entry in, a node out. Directories are the walk's business."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from cas.ids import Bytes, ChunkId
from cas.model import Extra, Node, NodeKind
from cas.source import posix

_VANISHED: Final = "It vanished before it could be read"
_CHANGED: Final = "It changed while it was read; what was read is kept"

Warn = Callable[[bytes, str], None]


class Sink(Protocol):
    """Where a backup puts what it reads: a writer, or nothing for a dry run."""

    def chunk(self, data: Bytes) -> ChunkId:
        """Take in the content of a small file."""

    def meta(self, data: bytes) -> ChunkId:
        """Take in a piece of metadata."""

    def file(self, readinto: Callable[[memoryview], int], size: int) -> tuple[bytes, int, int]:
        """Take in a longer file: content reference, depth, bytes."""


@dataclass(slots=True)
class Counts:
    """What a run has met and done. Sizes are bytes."""

    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    read: int = 0
    opened: int = 0


class _Content(msgspec.Struct, frozen=True, gc=False):
    """What reading a file gave."""

    content: bytes
    depth: int
    size: int
    extra: Extra | None
    st: os.stat_result


def reason(error: OSError) -> str:
    """The error as a person reads it."""
    return os.strerror(error.errno) if error.errno else str(error)


def make_node(
    name: bytes,
    st: os.stat_result,
    owner: int,
    kind: int,
    content: bytes,
    depth: int = 0,
    size: int = 0,
    extra: Extra | None = None,
) -> Node:
    """A node with the attributes of `st`; `owner` counts in the owners of its directory."""
    mode = st.st_mode & 0o7777
    return Node(name, kind, mode, owner, size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, content, depth, extra)


class EntryReader:
    """Reads entries that are new or changed."""

    def __init__(
        self, sink: Sink, counts: Counts, single_most: int, warn: Warn, tell: Callable[[], None], *, dry: bool
    ) -> None:
        """`single_most`: files up to so many bytes are read at once. A dry reader opens nothing."""
        self._sink = sink
        self._counts = counts
        self._single_most = single_most
        self._warn = warn
        self._tell = tell
        self._dry = dry
        self._links: dict[tuple[int, int], tuple[_Content, int]] = {}  # (device, inode) -> content, names to come

    def read(self, parent: int, path: bytes, name: bytes, st: os.stat_result, owner: int, kind: int) -> Node | None:
        """The node of an entry of the open directory `parent`, whose path is `path`; None, and a warning, where it
        cannot be read."""
        try:
            if kind != NodeKind.FILE:
                return self._special(parent, name, st, owner, kind)
            if st.st_nlink == 1:
                return self._node(name, self._content(parent, path, name, st), owner)
            known = self._links.get((st.st_dev, st.st_ino))
            read, left = known if known is not None else (self._content(parent, path, name, st), st.st_nlink)
            if left > 1:
                self._links[st.st_dev, st.st_ino] = (read, left - 1)
            else:
                self._links.pop((st.st_dev, st.st_ino), None)
            return self._node(name, read, owner)
        except FileNotFoundError:
            self._warn(path + b"/" + name, _VANISHED)
        except OSError as error:
            self._warn(path + b"/" + name, reason(error))
        return None

    @staticmethod
    def _node(name: bytes, read: _Content, owner: int) -> Node:
        return make_node(name, read.st, owner, NodeKind.FILE, read.content, read.depth, read.size, read.extra)

    @staticmethod
    def _special(parent: int, name: bytes, st: os.stat_result, owner: int, kind: int) -> Node:
        content = os.readlink(name, dir_fd=parent) if kind == NodeKind.SYMLINK else b""
        xattrs = posix.read_xattrs(posix.path_below(parent, name))
        return make_node(name, st, owner, kind, content, size=len(content), extra=posix.extra_of(st, xattrs, None))

    def _content(self, parent: int, path: bytes, name: bytes, st: os.stat_result) -> _Content:
        """Read a file; once more where it changes meanwhile.

        The attributes are those from before the reading, so that the next run sees that it changed.
        """
        if self._dry:
            return _Content(b"", 0, st.st_size, None, st)
        read, quiet = self._read_once(parent, name, st)
        if not quiet:
            read, quiet = self._read_once(parent, name, None)
        if not quiet:
            self._warn(path + b"/" + name, _CHANGED)
        return read

    def _read_once(self, parent: int, name: bytes, st: os.stat_result | None) -> tuple[_Content, bool]:
        """What one reading gave, and whether nothing changed since `st` (or since the opening, where None)."""
        file = posix.open_file(name, parent)
        try:
            self._counts.opened += 1
            if st is None:
                st = os.fstat(file)
            read = self._read_open(file, st)
            after = os.fstat(file)
        finally:
            os.close(file)
        if not stat.S_ISREG(after.st_mode):
            raise FileNotFoundError  # something else took its place since the listing
        return read, (
            after.st_mtime_ns == st.st_mtime_ns
            and after.st_ctime_ns == st.st_ctime_ns
            and after.st_size == st.st_size == read.size
            and after.st_ino == st.st_ino
        )

    def _read_open(self, file: int, st: os.stat_result) -> _Content:
        size = st.st_size
        xattrs = posix.read_xattrs(file)
        extents = posix.data_extents(file, st) if st.st_blocks * 512 < size else None
        if size <= self._single_most and extents is None:
            data = os.read(file, size + 1)
            if len(data) <= size:
                content = self._sink.chunk(data) if data else b""
                self._counts.read += len(data)
                return _Content(content, 0, len(data), posix.extra_of(st, xattrs, None), st)
            os.lseek(file, 0, os.SEEK_SET)  # it has grown: take it as a long one
        readinto = _plain_reader(file) if extents is None else posix.ExtentReader(file, extents)
        content, depth, total = self._sink.file(self._counted(readinto), size)
        kept = total if extents is None else size
        return _Content(content, depth, kept, posix.extra_of(st, xattrs, extents), st)

    def _counted(self, readinto: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
        def counted(view: memoryview) -> int:
            count = readinto(view)
            self._counts.read += count
            self._tell()
            return count

        return counted


def _plain_reader(file: int) -> Callable[[memoryview], int]:
    return lambda view: os.readv(file, [view])
