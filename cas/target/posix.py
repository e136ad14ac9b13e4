"""Making entries in a directory of the target: under a temporary name, with all attributes, then renamed into place."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, Protocol

from cas.model import Node, NodeKind
from cas.target.attributes import SPECIAL_BITS, Attributes, Ids, handle_path, put_times
from cas.target.directory import OPEN_STEP, Directory
from cas.target.names import temporary_name

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TYPE_OF_KIND: Final = {
    NodeKind.FIFO: stat.S_IFIFO,
    NodeKind.SOCKET: stat.S_IFSOCK,
    NodeKind.CHARACTER_DEVICE: stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: stat.S_IFBLK,
}


class Spot(Protocol):
    """What of a directory the making of a file in it needs: see `Directory`."""

    @property
    def fd(self) -> int: ...

    @property
    def natural(self) -> Ids: ...

    @property
    def inherits(self) -> bool: ...

    def path_of(self, name: bytes) -> bytes: ...


def create_file(
    attributes: Attributes, directory: Spot, node: Node, ids: Ids, *, readable: bool = False
) -> tuple[int, bytes, bool]:
    """An empty new file: its descriptor, its temporary name, and whether it has the node's owner and mode already.

    Most files need no further call for that, because they belong to whoever restores them and have a plain mode.
    """
    temporary = temporary_name()
    mode = node.mode
    settled = (
        ids == directory.natural
        and not mode & (SPECIAL_BITS | attributes.umask)
        and not directory.inherits
        and (node.extra is None or not node.extra.xattrs)
    )
    flags = _CREATE | (os.O_RDWR if readable else os.O_WRONLY)
    fd = os.open(temporary, flags, mode if settled else 0o600, dir_fd=directory.fd)
    return fd, temporary, settled


def settle_file(attributes: Attributes, directory: Spot, name: bytes, node: Node, ids: Ids, fd: int) -> None:
    """Owner, mode and extended attributes of a file that `create_file` did not settle."""
    path = directory.path_of(name)
    attributes.put(fd, node, ids, os.fstat(fd), path, fresh=True, acl=directory.inherits)


def make_other(attributes: Attributes, directory: Directory, name: bytes, node: Node, ids: Ids) -> bytes:
    """A symlink, fifo, socket or device with its attributes, under a temporary name; returns that. Raises OSError."""
    temporary = temporary_name()
    if node.kind == NodeKind.SYMLINK:
        os.symlink(node.content, temporary, dir_fd=directory.fd)
    else:
        device = node.extra.device if node.extra is not None and node.extra.device is not None else (0, 0)
        kind = _TYPE_OF_KIND[NodeKind(node.kind)]
        os.mknod(temporary, kind | 0o600, os.makedev(*device), dir_fd=directory.fd)
    try:
        handle = os.open(temporary, _HANDLE, dir_fd=directory.fd)
        try:
            where = handle_path(handle)
            path = directory.path_of(name)
            attributes.put(where, node, ids, os.fstat(handle), path, fresh=True, acl=directory.inherits)
            put_times(where, node)
        finally:
            os.close(handle)
    except BaseException:
        discard(directory, temporary)
        raise
    return temporary


def put_right(
    attributes: Attributes, directory: Directory, name: bytes, node: Node, ids: Ids, seen: os.stat_result
) -> None:
    """The attributes of an entry that stays, which looked like `seen`. Raises OSError, ESTALE where it was swapped."""
    handle = os.open(name, _HANDLE, dir_fd=directory.fd)
    try:
        have = os.fstat(handle)
        if (have.st_dev, have.st_ino) != (seen.st_dev, seen.st_ino):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        where = handle_path(handle)
        attributes.put(where, node, ids, have, directory.path_of(name), fresh=False)
        if have.st_mtime_ns != node.mtime:
            put_times(where, node)
    finally:
        os.close(handle)


def link(source: Directory, source_name: bytes, directory: Directory) -> bytes:
    """One more name for a file, a temporary one; returns it. Raises OSError."""
    temporary = temporary_name()
    if source is directory:
        os.link(source_name, temporary, src_dir_fd=source.fd, dst_dir_fd=source.fd, follow_symlinks=False)
        return temporary
    fd = source.borrow()
    try:
        os.link(source_name, temporary, src_dir_fd=fd, dst_dir_fd=directory.fd, follow_symlinks=False)
    finally:
        os.close(fd)
    return temporary


def same_file(source: Directory, source_name: bytes, seen: os.stat_result) -> bool:
    """Whether an entry that looked like `seen` is another name of the source."""
    fd = source.borrow()
    try:
        have = os.stat(source_name, dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)
    return (have.st_dev, have.st_ino) == (seen.st_dev, seen.st_ino)


def open_existing(directory: Directory, name: bytes) -> int:
    """A file that is there, to be read. Raises OSError, also where it is a link."""
    return os.open(name, _READ, dir_fd=directory.fd)


def place(directory: Spot, temporary: bytes, name: bytes, *, empties: bool) -> None:
    """Give the finished entry its name, over whatever file has it; with `empties`, over an empty directory."""
    if empties:
        os.rmdir(name, dir_fd=directory.fd)
    os.rename(temporary, name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)


def discard(directory: Spot, temporary: bytes) -> None:
    """Take away what did not become whole."""
    try:
        os.unlink(temporary, dir_fd=directory.fd)
    except OSError:
        pass  # gone already, or a leftover that the next run takes away


def is_empty(directory: Directory, name: bytes) -> bool:
    """Whether a directory in the way holds nothing. Raises OSError."""
    fd = os.open(name, OPEN_STEP, dir_fd=directory.fd)
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


def readlink(directory: Directory, name: bytes) -> bytes:
    """The target of a link that is there. Raises OSError."""
    return os.readlink(name, dir_fd=directory.fd)
