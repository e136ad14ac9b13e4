"""The owning group's rights in a POSIX ACL, as Linux keeps it in an extended attribute."""

from __future__ import annotations

import struct

import pytest

from mount.fuse_attributes import group_rights

_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def _acl(*entries: tuple[int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", tag, rights, 7) for tag, rights in entries)


_FULL = ((_USER_OBJ, 6), (_USER, 6), (_GROUP_OBJ, 5), (_GROUP, 7), (_MASK, 6), (_OTHER, 1))


@pytest.mark.parametrize(
    "acl, rights",
    [
        (_acl(*_FULL), 4),
        (_acl((_USER_OBJ, 6), (_GROUP_OBJ, 5), (_OTHER, 0)), 5),
        (_acl((_GROUP_OBJ, 0), (_MASK, 7)), 0),
        (_acl((_GROUP_OBJ, 7), (_MASK, 0)), 0),
        (_acl((_GROUP_OBJ, 0xFFFF)), 7),
        (_acl(*_FULL, version=1), 0),
        (_acl(*_FULL)[:-1], 0),
        (_acl(*_FULL) + b"x", 0),
        (_acl((_USER_OBJ, 6), (_MASK, 7), (_OTHER, 7)), 0),
        (_acl((_GROUP_OBJ, 7), (_GROUP_OBJ, 7)), 0),
        (_acl((_GROUP_OBJ, 7), (_MASK, 7), (_MASK, 7)), 0),
        (_acl(), 0),
        (b"", 0),
        (b"\2\0\0", 0),
    ],
)
def test_what_the_owning_group_may(acl: bytes, rights: int) -> None:
    assert group_rights(acl) == rights
