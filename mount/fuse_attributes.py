"""Nodes as the kernel is told of them: by which number, with which owner and mode, and for how long that is good."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

from mount import fuse_wire as wire
from mount import inodes
from mount.view import Attributes, View

FOR_EVER: Final = 365 * 86400  # seconds
SHORT: Final = 1  # seconds, for the folders above the points: these look for new points every three seconds
_IO_BYTES: Final = 128 << 10  # what programs are advised to read at once
_SECTOR: Final = 512  # the unit of st_blocks
_SECOND: Final = 1_000_000_000  # ns
_VERSIONED: Final = 1 << 63  # of a node: the symlink `latest`, with a number that its target gives
_NOTHING: Final = (0,) * 16

# A POSIX ACL as Linux has it in the extended attribute: a version, then entries of tag, rights and id.
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_VERSION: Final = 2
_GROUP_OBJ: Final = 0x04  # the rights of the owning group
_MASK: Final = 0x10  # the most that any group and any named user gets


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a drive is mounted.

    `allow_other`: other users may look in, each with the rights that the modes give. `uid` and `gid` are shown in place
    of every owner, and the bits of `umask` are cleared in every mode but those of symlinks; with any of these, ACLs are
    shown but not heeded, and the owning group has the rights that its own entry in the ACL gives it.
    """

    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

    @property
    def mapped(self) -> bool:
        """Whether owners or modes are others than the points have."""
        return (self.uid, self.gid, self.umask) != (None, None, None)


class Shown:
    """Attributes with the owners and modes that a drive shows."""

    def __init__(self, view: View, options: MountOptions) -> None:
        self._view = view
        self._uid, self._gid = options.uid, options.gid
        self._mapped = options.mapped
        self._mask = ~((options.umask or 0) & 0o7777)

    def entry(self, attributes: Attributes) -> bytes:
        """A name's reply."""
        values = self.values(attributes, attributes.mtime)
        if attributes.lasting:
            return wire.ENTRY_OUT.pack(attributes.inode, 0, FOR_EVER, FOR_EVER, 0, 0, *values)
        # Its attributes are asked for when they are needed: only GETATTR tells when a folder has changed.
        return wire.ENTRY_OUT.pack(self.node(attributes), 0, SHORT, 0, 0, 0, *values)

    def missing(self, lasting: bool) -> bytes:
        """The reply for a name that there is not: the kernel may remember that."""
        return wire.ENTRY_OUT.pack(0, 0, FOR_EVER if lasting else SHORT, 0, 0, 0, *_NOTHING)

    def values(self, attributes: Attributes, mtime: int) -> tuple[int, ...]:
        """As the kernel has them in entries and attributes."""
        modified, modified_ns = divmod(mtime, _SECOND)
        changed, changed_ns = divmod(attributes.ctime, _SECOND)
        return (
            attributes.inode,
            attributes.size,
            (attributes.allocated + _SECTOR - 1) // _SECTOR,
            modified,
            modified,
            changed,
            modified_ns,
            modified_ns,
            changed_ns,
            self._mode(attributes) if self._mapped else attributes.mode,
            attributes.links,
            attributes.uid if self._uid is None else self._uid,
            attributes.gid if self._gid is None else self._gid,
            wire.pack_device(*attributes.device),
            _IO_BYTES,
            0,
        )

    def _mode(self, attributes: Attributes) -> int:
        mode = attributes.mode
        if stat.S_ISLNK(mode):
            return mode  # always lrwxrwxrwx: nobody heeds it
        if attributes.acl is not None:
            # Where the kernel does not heed the ACL, it would take its mask for the rights of the group.
            mode &= ~stat.S_IRWXG | group_rights(attributes.acl) << 3
        return mode & self._mask

    def node(self, attributes: Attributes) -> int:
        """By which number the kernel knows a node.

        It keeps the targets of symlinks for good, so `latest` is another node for each.
        """
        inode = attributes.inode
        if attributes.lasting or not stat.S_ISLNK(attributes.mode):
            return inode
        return _VERSIONED | crc32(self._view.readlink(inode)) << inodes.POSITION_BITS | inode


def group_rights(acl: bytes) -> int:
    """The rights (0 to 7) of the owning group in a POSIX ACL, as far as its mask allows; none where it is malformed."""
    size = len(acl) - _ACL_HEADER.size
    if size < 0 or size % _ACL_ENTRY.size or _ACL_HEADER.unpack_from(acl)[0] != _ACL_VERSION:
        return 0
    entries: list[tuple[int, int]] = [
        (tag, rights) for tag, rights, _ in _ACL_ENTRY.iter_unpack(acl[_ACL_HEADER.size :])
    ]
    own = [rights for tag, rights in entries if tag == _GROUP_OBJ]
    masks = [rights for tag, rights in entries if tag == _MASK]
    if len(own) != 1 or len(masks) > 1:
        return 0
    return own[0] & (masks[0] if masks else 7) & 7


def inode_of(node: int) -> int:
    """The view's number of a node."""
    return node & inodes.POSITIONS - 1 if node & _VERSIONED else node
