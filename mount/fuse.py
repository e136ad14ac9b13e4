"""The kernel's FUSE requests <-> the view. The only place where a fault of ours becomes an errno.

Everything inside a point is immutable, so the kernel may keep names, attributes, listings and data for good. It is told
once that files and directories need no opening (ENOSYS), and from then on asks by inode for what it does not have. The
few folders above the points do change: what it keeps of them is good for a second, and their mtime tells it when to
list them anew.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import Final

from cas.errors import BackdriveError
from mount import fuse_wire as wire
from mount import inodes
from mount.fuse_attributes import FOR_EVER, SHORT, MountOptions, Shown, inode_of
from mount.fuse_listing import Listings
from mount.fuse_session import Counters, Operation, Refused, Session
from mount.inodes import POSITIONS, ROOT
from mount.records import shown
from mount.timeline import Place
from mount.view import Stale, View, WrongKind

_log = logging.getLogger("backdrive.drive")

_UNIT: Final = 4096  # of statfs
_QUIET: Final = 60.0  # seconds in which the same fault is not logged again
_QUIET_MOST: Final = 1024

_WRONG_KIND: Final = {
    wire.LOOKUP: errno.ENOTDIR,
    wire.READDIRPLUS: errno.ENOTDIR,
    wire.READLINK: errno.EINVAL,
    wire.READ: errno.EISDIR,
}
# Not ASYNC_DIO: who reads past the page cache would then wait for the vault even when killed.
_FLAGS: Final = (
    wire.ASYNC_READ
    | wire.PARALLEL_DIROPS
    | wire.CACHE_SYMLINKS
    | wire.NO_OPENDIR_SUPPORT
    | wire.INIT_EXT
    | wire.NO_EXPORT_SUPPORT  # a node that the kernel has forgotten cannot always be found by its number again
)


class _Faults:
    """Logs what could not be read: one line for a file and a reason, however often the kernel asks again."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._told: dict[tuple[int, str], float] = {}

    def tell(self, inode: int, error: BackdriveError) -> None:
        """One line naming the file and what is wrong in the vault, unless it was told just now."""
        now = time.monotonic()
        key = (inode, str(error.args[0]))
        if now - self._told.get(key, -_QUIET) < _QUIET:
            return
        if len(self._told) >= _QUIET_MOST:
            self._told.clear()
        self._told[key] = now
        _log.error("%s: %s", shown(os.fsdecode(self._view.path(inode))), error.args[0])


class _Folders:
    """When the folders above the points changed, as far as anybody looked. Thread safe."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._seen: dict[int, tuple[list[tuple[bytes, Place]], int]] = {}

    def changed(self, inode: int, wait: bool) -> int:
        """When its entries were first seen to be others than before, in ns; 0: not since the drive was opened."""
        now = self._view.open_directory(inode, wait=wait).places
        before, when = self._seen.get(inode, (now, 0))
        if before != now:
            when = time.time_ns()
        self._seen[inode] = (now, when)
        return when


class Drive:
    """The operations: `operations` by opcode. Each may raise MustWait where `wait` is False."""

    def __init__(self, view: View, options: MountOptions, counters: Counters) -> None:
        self._view = view
        self._counters = counters
        self._faults = _Faults(view)
        self._folders = _Folders(view)
        self._shown = Shown(view, options)
        self._listings = Listings(view, self._shown)
        self.flags = _FLAGS
        if not options.mapped:
            self.flags |= wire.POSIX_ACL  # the kernel heeds POSIX ACLs, and shows them
        if not view.is_lasting(ROOT):
            self.flags |= wire.AUTO_INVAL_DATA  # a new mtime makes it list a folder anew
        self.written: Callable[[int], None] = lambda node: None  # told of nodes that somebody tried to write to
        self.operations: dict[int, Operation] = {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._forget,
            wire.BATCH_FORGET: self._forget_many,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.READ: self._read,
            wire.STATFS: self._statfs,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.READDIRPLUS: self._listings.readdirplus,
            wire.LSEEK: self._lseek,
            wire.DESTROY: lambda *_: b"",
            **dict.fromkeys(wire.MUTATING, self._refuse),
            wire.WRITE: self._refuse_write,
        }

    def fault(self, opcode: int, node: int, error: Exception) -> int:
        """The errno for what an operation raised."""
        if isinstance(error, WrongKind):
            return _WRONG_KIND.get(opcode, errno.EINVAL)
        if isinstance(error, Stale):
            return errno.ESTALE
        self._counters.errors += 1
        if isinstance(error, BackdriveError):
            self._faults.tell(inode_of(node), error)
        else:  # it fails the one request that met it, and not the drive
            _log.error("unforeseen fault in request %d", opcode, exc_info=error)
        return errno.EIO

    # --- names and attributes ---

    def _lookup(self, node: int, body: memoryview, wait: bool) -> bytes:
        found = self._view.lookup(node, bytes(body[:-1]), hold=True, wait=wait)
        self._listings.looked_up(node)
        return self._shown.missing(self._view.is_lasting(node)) if found is None else self._shown.entry(found)

    def _forget(self, node: int, body: memoryview, wait: bool) -> None:
        self._view.release(inode_of(node), wire.FORGET_IN.unpack_from(body)[0])

    def _forget_many(self, node: int, body: memoryview, wait: bool) -> None:
        directories: dict[int, int] = {}
        for forgotten, count in wire.unpack_forgets(body):
            if inodes.is_link(forgotten):
                self._view.release(inode_of(forgotten), count)
            else:  # the entries of a directory count together
                first = forgotten & -POSITIONS
                directories[first] = directories.get(first, 0) + count
        for first, count in directories.items():
            self._view.release(first, count)

    def _getattr(self, node: int, body: memoryview, wait: bool) -> bytes:
        inode = inode_of(node)
        found = self._view.attributes(inode, wait=wait)
        if found.lasting:
            return wire.ATTR_OUT.pack(FOR_EVER, 0, 0, *self._shown.values(found, found.mtime))
        mtime = found.mtime
        if stat.S_ISDIR(found.mode) and not self._view.is_lasting(inode):
            mtime = max(mtime, self._folders.changed(inode, wait))
        return wire.ATTR_OUT.pack(SHORT, 0, 0, *self._shown.values(found, mtime))

    def _readlink(self, node: int, body: memoryview, wait: bool) -> bytes:
        return self._view.readlink(inode_of(node), wait=wait)

    def _getxattr(self, node: int, body: memoryview, wait: bool) -> bytes:
        name = bytes(body[wire.GETXATTR_IN.size : -1])
        value = self._view.xattrs(inode_of(node), wait=wait).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return _sized(value, body)

    def _listxattr(self, node: int, body: memoryview, wait: bool) -> bytes:
        return _sized(b"".join(name + b"\0" for name in self._view.xattrs(inode_of(node), wait=wait)), body)

    def _statfs(self, node: int, body: memoryview, wait: bool) -> bytes:
        usage = self._view.usage()
        return wire.pack_statfs(_UNIT, (usage.size + _UNIT - 1) // _UNIT, usage.files, 255)

    # --- files ---

    def _read(self, node: int, body: memoryview, wait: bool) -> bytes | memoryview:
        _, offset, size = wire.READ_IN.unpack_from(body)
        data = self._view.read(node, offset, size, wait=wait)
        self._counters.reads += 1
        self._counters.read_bytes += len(data)
        return data

    def _lseek(self, node: int, body: memoryview, wait: bool) -> bytes:
        _, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        found = self._view.node(node, wait=wait)
        if found is None or not found.is_file or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise Refused(errno.EINVAL)
        extents = None if found.extra is None else found.extra.extents
        data = [(0, found.size)] if extents is None else [(start, start + length) for start, length in extents]
        return wire.LSEEK_OUT.pack(seek(data, found.size, offset, whence == os.SEEK_DATA))

    # --- what is refused: `ro` keeps nearly all of it away from here, until root remounts ---

    def _refuse(self, node: int, body: memoryview, wait: bool) -> bytes:
        raise Refused(errno.EROFS)

    def _refuse_write(self, node: int, body: memoryview, wait: bool) -> bytes:
        self.written(node)
        raise Refused(errno.EROFS)


def _sized(value: bytes, body: memoryview) -> bytes:
    """A value as GETXATTR and LISTXATTR want it: all of it, or how large it is."""
    size, _ = wire.GETXATTR_IN.unpack_from(body)
    if size == 0:
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise Refused(errno.ERANGE)
    return value


def seek(data: list[tuple[int, int]], size: int, offset: int, to_data: bool) -> int:
    """Where the next data, or the next hole, begins. `data`: (start, end), in order; the end of the file is a hole."""
    if offset >= size:
        raise Refused(errno.ENXIO)
    for start, end in data:
        if end <= offset:
            continue
        if to_data:
            return max(start, offset)
        if start > offset:
            return offset
        offset = end
    if to_data:
        raise Refused(errno.ENXIO)
    return min(offset, size)


def serve(
    view: View,
    target: str,
    options: MountOptions,
    ready: Callable[[], None],
    counters: Counters | None = None,
    threads: int = 24,
) -> None:
    """Mount and answer until somebody unmounts, or SIGTERM or SIGINT comes; then unmount. For the main thread.

    `ready` is called in a thread when the drive answers; `counters` are kept up to date for whoever looks. So many
    `threads` at most read from the vault for somebody who waits. Raises MountFailed, and what `ready` raises of our
    errors.
    """
    counters = counters or Counters()
    drive = Drive(view, options, counters)
    session = Session(drive.operations, drive.fault, drive.flags, counters, threads)
    drive.written = session.drop_cached  # what was written has not reached us, but the kernel may show it
    session.serve(target, ready, allow_other=options.allow_other)


__all__ = ["Counters", "Drive", "MountOptions", "serve"]
