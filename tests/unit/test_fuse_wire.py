"""The FUSE wire against the kernel's layouts, written down a second time as C structures."""

from __future__ import annotations

import ctypes
import errno
import struct
from ctypes import c_char, c_int32, c_int64, c_uint16, c_uint32, c_uint64
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mount import fuse_wire as wire
from mount.fuse import seek
from mount.fuse_session import Refused

_ATTR = [
    *((name, c_uint64) for name in ("ino", "size", "blocks")),
    *((name, c_int64) for name in ("atime", "mtime", "ctime")),
    *((name, c_uint32) for name in ("atimensec", "mtimensec", "ctimensec")),
    *((name, c_uint32) for name in ("mode", "nlink", "uid", "gid", "rdev", "blksize", "flags")),
]
_LIFETIME = [
    *((name, c_uint64) for name in ("entry_valid", "attr_valid")),
    *((name, c_uint32) for name in ("entry_valid_nsec", "attr_valid_nsec")),
]
_ENTRY = [("nodeid", c_uint64), ("generation", c_uint64), *_LIFETIME, *_ATTR]
_U32 = st.integers(0, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
_S64 = st.integers(-(2**63), 2**63 - 1)


def _layout(*fields: tuple[str, Any]) -> type[ctypes.Structure]:
    class Layout(ctypes.Structure):
        _fields_: ClassVar = list(fields)

    return Layout


_LAYOUTS = {
    "fuse_in_header": (
        wire.IN_HEADER,
        _layout(
            ("len", c_uint32),
            ("opcode", c_uint32),
            ("unique", c_uint64),
            ("nodeid", c_uint64),
            *((name, c_uint32) for name in ("uid", "gid", "pid")),
            ("total_extlen", c_uint16),
            ("padding", c_uint16),
        ),
        40,
    ),
    "fuse_out_header": (wire.OUT_HEADER, _layout(("len", c_uint32), ("error", c_int32), ("unique", c_uint64)), 16),
    "fuse_entry_out": (wire.ENTRY_OUT, _layout(*_ENTRY), 128),
    "fuse_attr_out": (
        wire.ATTR_OUT,
        _layout(("attr_valid", c_uint64), ("attr_valid_nsec", c_uint32), ("dummy", c_uint32), *_ATTR),
        104,
    ),
    "fuse_direntplus": (
        wire.DIRENTPLUS,
        _layout(*_ENTRY, ("d_ino", c_uint64), ("off", c_uint64), ("namelen", c_uint32), ("type", c_uint32)),
        152,
    ),
    "the start of fuse_read_in": (
        wire.READ_IN,
        _layout(("fh", c_uint64), ("offset", c_uint64), ("size", c_uint32)),
        20,
    ),
    "fuse_getxattr_in": (wire.GETXATTR_IN, _layout(("size", c_uint32), ("padding", c_uint32)), 8),
    "fuse_getxattr_out": (wire.GETXATTR_OUT, _layout(("size", c_uint32), ("padding", c_uint32)), 8),
    "fuse_lseek_in": (
        wire.LSEEK_IN,
        _layout(("fh", c_uint64), ("offset", c_uint64), ("whence", c_uint32), ("padding", c_uint32)),
        24,
    ),
    "fuse_lseek_out": (wire.LSEEK_OUT, _layout(("offset", c_uint64)), 8),
    "fuse_interrupt_in": (wire.UNIQUE_IN, _layout(("unique", c_uint64)), 8),
    "fuse_forget_in": (wire.FORGET_IN, _layout(("nlookup", c_uint64)), 8),
}
_NUMBERS: dict[Any, st.SearchStrategy[int]] = {
    c_int32: st.integers(-(2**31), 2**31 - 1),
    c_int64: _S64,
    c_uint16: st.integers(0, 2**16 - 1),
    c_uint32: _U32,
    c_uint64: _U64,
}


@pytest.mark.parametrize("name", _LAYOUTS)
@given(data=st.data())
def test_every_layout_is_the_kernels(name: str, data: st.DataObject) -> None:
    ours, theirs, size = _LAYOUTS[name]
    values = tuple(data.draw(_NUMBERS[kind]) for _, kind in theirs._fields_)  # type: ignore[misc]
    expected = theirs(*values)
    assert ctypes.sizeof(expected) >= ours.size == size  # C pads the start of a structure to its alignment
    assert ours.pack(*values) == bytes(expected)[:size]
    assert ours.unpack(bytes(expected)[:size]) == values


@given(_U32, _U32, st.integers(0, 2**62 - 1))
def test_an_offer_is_understood(minor: int, read_ahead: int, flags: int) -> None:
    body = struct.pack("=IIIII44x", 7, minor, read_ahead, flags & 0xFFFF_FFFF, flags >> 32)
    known = flags if flags & wire.INIT_EXT else flags & 0xFFFF_FFFF
    assert wire.unpack_init(memoryview(body)) == (7, minor, read_ahead, known)
    assert wire.unpack_init(memoryview(body[:16])) == (7, minor, read_ahead, flags & 0xFFFF_FFFF)


def test_what_is_taken_of_an_offer() -> None:
    flags = wire.ASYNC_READ | wire.INIT_EXT | wire.NO_EXPORT_SUPPORT
    reply = wire.pack_init(39, flags, max_readahead=0x10203, background=64, max_write=4096, max_pages=256)
    layout = _layout(
        *((name, c_uint32) for name in ("major", "minor", "max_readahead", "flags")),
        *((name, c_uint16) for name in ("max_background", "congestion_threshold")),
        *((name, c_uint32) for name in ("max_write", "time_gran")),
        *((name, c_uint16) for name in ("max_pages", "map_alignment")),
        ("flags2", c_uint32),
        ("unused", c_uint32 * 7),
    )
    expected = layout(7, 39, 0x10203, 0x4000_0001, 64, 48, 4096, 1, 256, 0, 1 << 6)
    assert reply == bytes(expected)
    assert len(reply) == 64


def test_statfs_of_a_full_file_system() -> None:
    layout = _layout(
        *((name, c_uint64) for name in ("blocks", "bfree", "bavail", "files", "ffree")),
        *((name, c_uint32) for name in ("bsize", "namelen", "frsize", "padding")),
        ("spare", c_uint32 * 6),
    )
    assert wire.pack_statfs(4096, 7, 5, 255) == bytes(layout(7, 0, 0, 5, 0, 4096, 255, 4096))


def test_a_message_that_drops_what_is_kept() -> None:
    layout = _layout(
        ("len", c_uint32),
        ("code", c_int32),
        ("unique", c_uint64),
        ("ino", c_uint64),
        ("off", c_int64),
        ("length", c_int64),
    )
    assert wire.pack_inval_inode(2**62 + 5) == bytes(layout(40, 2, 0, 2**62 + 5, 0, 0))


@given(st.lists(st.tuples(_U64, _U64), max_size=20), st.binary(max_size=15))
def test_forgets(forgets: list[tuple[int, int]], after: bytes) -> None:
    body = struct.pack("=II", len(forgets), 0) + b"".join(struct.pack("=QQ", *pair) for pair in forgets) + after
    assert list(wire.unpack_forgets(memoryview(body))) == forgets


@given(st.binary(min_size=1, max_size=255))
def test_room_for_an_entry(name: bytes) -> None:
    layout = _layout(*_ENTRY, ("dirent", c_uint64 * 3), ("name", c_char * len(name)))
    assert wire.direntplus_size(len(name)) == ctypes.sizeof(layout)
    assert wire.direntplus_size(len(name)) % 8 == 0


@pytest.mark.parametrize(
    "major, minor, packed",
    [(1, 3, 0x103), (8, 0, 0x800), (259, 5, 0x10305), (4095, 255, 0xFFFFF), (8, 0x12345, 0x12300845)],
)
def test_device_numbers_are_the_kernels(major: int, minor: int, packed: int) -> None:
    assert wire.pack_device(major, minor) == packed


def test_what_changes_and_what_is_not_answered() -> None:
    assert not wire.MUTATING & {wire.LOOKUP, wire.READ, wire.READDIRPLUS, wire.OPEN, wire.FORGET}
    assert sorted(wire.MUTATING) == [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51]
    assert sorted(wire.WITHOUT_REPLY) == [2, 36, 41, 42]


@given(st.lists(st.integers(1, 5), max_size=8), st.booleans(), st.integers(0, 45), st.booleans())
def test_data_and_holes(lengths: list[int], begins_with_data: bool, offset: int, to_data: bool) -> None:
    """Against a file in which every byte is marked as data or not."""
    marks: list[bool] = []
    data: list[tuple[int, int]] = []
    for number, length in enumerate(lengths):
        is_data = (number % 2 == 0) == begins_with_data
        if is_data:
            data.append((len(marks), len(marks) + length))
        marks += [is_data] * length
    later = [at for at in range(offset, len(marks)) if marks[at] == to_data]
    expected = later[0] if later else None if to_data or offset >= len(marks) else len(marks)
    if expected is None:
        with pytest.raises(Refused) as refused:
            seek(data, len(marks), offset, to_data)
        assert refused.value.number == errno.ENXIO
    else:
        assert seek(data, len(marks), offset, to_data) == expected
