"""Frozen types that every room may use: what a recovery point, a tree and a node are.

The structs are also the wire format (msgpack, see `cas/FORMAT.md`): a node is an array, in the order of its fields,
because a tree of a million nodes must be small and quick to decode; everything rare lives in `Extra`, a map whose keys
are one letter long. Adding a key to `Extra` needs a feature flag in the point (`Point.features`).

Times are integers, nanoseconds since 1970-01-01T00:00:00Z. Names and paths are bytes: any legal name survives.
"""

from __future__ import annotations

import stat as _stat
from enum import IntEnum
from typing import Final

from msgspec import Struct, field

from cas.ids import ChunkId, MachineId, PointId


class NodeKind(IntEnum):
    """What a node is. The numbers are part of the format."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    FIFO = 3
    SOCKET = 4
    CHARACTER_DEVICE = 5
    BLOCK_DEVICE = 6


_TYPE_BITS: Final[dict[int, int]] = {
    NodeKind.FILE: _stat.S_IFREG,
    NodeKind.DIRECTORY: _stat.S_IFDIR,
    NodeKind.SYMLINK: _stat.S_IFLNK,
    NodeKind.FIFO: _stat.S_IFIFO,
    NodeKind.SOCKET: _stat.S_IFSOCK,
    NodeKind.CHARACTER_DEVICE: _stat.S_IFCHR,
    NodeKind.BLOCK_DEVICE: _stat.S_IFBLK,
}
KIND_OF_TYPE_BITS: Final[dict[int, int]] = {bits: kind for kind, bits in _TYPE_BITS.items()}


class Owner(Struct, array_like=True, frozen=True, gc=False):
    """Who owns a node: numeric ids, and the names they had on the source ("" where unknown)."""

    uid: int
    gid: int
    user: bytes = b""
    group: bytes = b""


class HardLink(Struct, array_like=True, frozen=True, gc=False):
    """The identity of a file with several names: see `Node.link_group`."""

    device: int
    count: int  # st_nlink when the point was taken; some of the names may lie outside the point


LinkGroup = tuple[int, int, int, int, bytes]
"""Device, inode, size, mtime and content."""


class Stream(Struct, array_like=True, frozen=True, gc=False):
    """A Windows alternate data stream. `content` and `depth` as in `Node`."""

    name: bytes  # WTF-8, without the leading colon and the trailing :$DATA
    size: int
    content: bytes
    depth: int


class WindowsExtra(Struct, frozen=True, omit_defaults=True):
    """What only Windows has."""

    attributes: int = field(default=0, name="a")
    descriptor: bytes = field(default=b"", name="d")  # self-relative SECURITY_DESCRIPTOR
    streams: list[Stream] = field(default_factory=list, name="s")
    reparse: bytes = field(default=b"", name="r")  # REPARSE_DATA_BUFFER
    short_name: bytes = field(default=b"", name="n")
    efs: bool = field(default=False, name="e")  # the content is the raw export of an encrypted file


class Extra(Struct, frozen=True, omit_defaults=True):
    """What few nodes have."""

    xattrs: dict[bytes, bytes] = field(default_factory=dict, name="x")  # POSIX ACLs are system.posix_acl_* among them
    device: tuple[int, int] | None = field(default=None, name="r")  # (major, minor) of a device node
    link: HardLink | None = field(default=None, name="h")
    extents: list[tuple[int, int]] | None = field(default=None, name="s")  # (offset, length) of data in a sparse file
    partial: bool = field(default=False, name="p")  # a directory kept only as the way to a protected path below it
    birth: int = field(default=0, name="b")
    windows: WindowsExtra | None = field(default=None, name="w")


class Node(Struct, array_like=True, frozen=True, gc=False):
    """One entry of a directory with all its metadata.

    `content` depends on the kind:
      file       its content reference: see `cas/store/content.py`
      directory  the id of its tree, 32 bytes
      symlink    the target, as it was read
      others     empty
    """

    name: bytes
    kind: int  # a NodeKind
    mode: int  # permission bits, 0o7777
    owner: int  # position in the owners of the tree that holds the node
    size: int  # bytes, 0 for everything but files and symlinks
    mtime: int
    ctime: int
    inode: int
    content: bytes
    depth: int = 0  # 0: `content` names chunks of data; n: it names lists of depth n-1
    extra: Extra | None = None

    @property
    def is_directory(self) -> bool:
        return self.kind == NodeKind.DIRECTORY

    @property
    def is_file(self) -> bool:
        return self.kind == NodeKind.FILE

    @property
    def st_mode(self) -> int:
        """Mode with the type bits of stat(2)."""
        return _TYPE_BITS[self.kind] | self.mode

    @property
    def link_group(self) -> LinkGroup | None:
        """What all names of one hard-linked file share, or None.

        Device and inode alone would not do: a device may get another number between two runs, and the nodes of one
        point may come from both.
        """
        extra = self.extra
        if extra is None or extra.link is None:
            return None
        return extra.link.device, self.inode, self.size, self.mtime, self.content


class Tree(Struct, array_like=True, frozen=True, gc=False):
    """The entries of one directory (or one page of a large one), sorted by name as bytes."""

    owners: list[Owner]
    nodes: list[Node]


class TreePage(Struct, array_like=True, frozen=True, gc=False):
    """A reference to one page of a large directory."""

    first: bytes  # the name of its first entry
    count: int  # entries in it
    tree: ChunkId


class PointStats(Struct, frozen=True, omit_defaults=True):
    """Counts of one backup run. All sizes are bytes."""

    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0  # of all files, as stat(2) tells it
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    read: int = 0  # bytes read from the source
    added_plain: int = 0  # bytes of new chunks before compression
    added: int = 0  # bytes this run added to the vault in packs
    warnings: int = 0
    opened: int = 0  # files opened for reading


class Point(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A recovery point: one restorable state of one machine."""

    id: PointId
    machine_id: MachineId
    machine: str
    started: int
    finished: int
    paths: list[bytes]  # absolute, normalised, sorted; the roots that were asked for
    root: ChunkId  # the tree of "/"
    root_node: Node | None = None  # the attributes of "/" itself; its owner is in `root_owner`
    root_owner: Owner = Owner(0, 0)
    mode: str = "full"  # "full" or "incremental"
    parent: PointId | None = None
    excludes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    stats: PointStats = field(default_factory=PointStats)
    utc_offset: int = 0  # seconds east of UTC where and when the point was taken
    platform: str = ""
    agent: str = ""  # the version that wrote it
    features: list[str] = field(default_factory=list)  # what a reader must know to read this point
