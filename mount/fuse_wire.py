"""The kernel's FUSE protocol as bytes: numbers, flags and layouts; packing and unpacking, and nothing else.

Source: the kernel's uapi header `linux/fuse.h`, protocol 7.31 with what later versions added; names are its names
without the prefix. Everything is in the byte order of the machine, as the kernel and we share it. A request is a header
and a body; a reply is a header and a payload. Times are whole seconds since 1970, signed, and nanoseconds apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

MAJOR: Final = 7
MINOR: Final = 40  # the newest whose layouts are known here
OLDEST_MINOR: Final = 31
ROOT_ID: Final = 1

# --- what the kernel asks ---------------------------------------------------------------------------------------------

LOOKUP: Final = 1
FORGET: Final = 2  # no reply
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RMDIR: Final = 11
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
SETXATTR: Final = 21
GETXATTR: Final = 22
LISTXATTR: Final = 23
REMOVEXATTR: Final = 24
INIT: Final = 26
OPENDIR: Final = 27
CREATE: Final = 35
INTERRUPT: Final = 36  # no reply
DESTROY: Final = 38
NOTIFY_REPLY: Final = 41  # no reply
BATCH_FORGET: Final = 42  # no reply
FALLOCATE: Final = 43
READDIRPLUS: Final = 44
RENAME2: Final = 45
LSEEK: Final = 46
COPY_FILE_RANGE: Final = 47
TMPFILE: Final = 51

_MUTATING_NAMES: Final = (SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK, CREATE, TMPFILE)
_MUTATING_FILES: Final = (WRITE, FALLOCATE, COPY_FILE_RANGE, SETATTR, SETXATTR, REMOVEXATTR)
MUTATING: Final = frozenset((*_MUTATING_NAMES, *_MUTATING_FILES))
WITHOUT_REPLY: Final = frozenset((FORGET, INTERRUPT, NOTIFY_REPLY, BATCH_FORGET))

NOTIFY_INVAL_INODE: Final = 2  # instead of an error, in a message that answers nothing

# --- what INIT agrees on ----------------------------------------------------------------------------------------------

ASYNC_READ: Final = 1 << 0
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
NO_OPEN_SUPPORT: Final = 1 << 17
PARALLEL_DIROPS: Final = 1 << 18
POSIX_ACL: Final = 1 << 20
MAX_PAGES: Final = 1 << 22
CACHE_SYMLINKS: Final = 1 << 23
NO_OPENDIR_SUPPORT: Final = 1 << 24
INIT_EXT: Final = 1 << 30
NO_EXPORT_SUPPORT: Final = 1 << 38  # since 7.39; a flag that the kernel does not offer is not asked for

# --- layouts ----------------------------------------------------------------------------------------------------------

IN_HEADER: Final = Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extension length, padding
OUT_HEADER: Final = Struct("=IiQ")  # length, negative errno or 0, unique
BODY: Final = IN_HEADER.size  # where the body of a request begins

# inode, size, blocks, seconds and then nanoseconds of atime, mtime and ctime, mode, links, uid, gid, device, block
# size, flags
_ATTRIBUTES: Final = "QQQqqqIIIIIIIIII"
# node, generation, seconds and then nanoseconds for which the name and the attributes are good, attributes
ENTRY_OUT: Final = Struct("=QQQQII" + _ATTRIBUTES)
ATTR_OUT: Final = Struct("=QII" + _ATTRIBUTES)  # seconds and nanoseconds that they are good for, padding, attributes
# an entry as above; inode, cookie after it, length of the name, type. The name follows, padded to 8 bytes.
DIRENTPLUS: Final = Struct(ENTRY_OUT.format + "QQII")
READ_IN: Final = Struct("=QQI")  # the start of it: handle, offset, size. READDIRPLUS has the same
GETXATTR_IN: Final = Struct("=II")  # size, padding; of GETXATTR the name follows
GETXATTR_OUT: Final = Struct("=II")  # size, padding
LSEEK_IN: Final = Struct("=QQII")  # handle, offset, whence, padding
LSEEK_OUT: Final = Struct("=Q")
UNIQUE_IN: Final = Struct("=Q")  # of INTERRUPT
FORGET_IN: Final = Struct("=Q")
_BATCH_FORGET_IN: Final = Struct("=II")  # count, padding
_FORGET_ONE: Final = Struct("=QQ")  # node, count
_STATFS_OUT: Final = Struct("=QQQQQIIII24x")
_INIT_IN: Final = Struct("=IIII")  # major, minor, read-ahead, flags
_FLAGS2: Final = Struct("=I")
_INIT_OUT: Final = Struct("=IIIIHHIIHHI28x")
_INVAL_INODE: Final = Struct("=IiQQqq")

_NAME_AT: Final = DIRENTPLUS.size


class Init(NamedTuple):
    """What the kernel offers: `flags` are those of both words."""

    major: int
    minor: int
    max_readahead: int  # bytes
    flags: int


def unpack_init(body: memoryview) -> Init:
    """The kernel's offer. Raises struct.error where it is shorter than that of any known version."""
    major, minor, max_readahead, flags = _INIT_IN.unpack_from(body)
    if flags & INIT_EXT and len(body) >= _INIT_IN.size + _FLAGS2.size:
        flags |= _FLAGS2.unpack_from(body, _INIT_IN.size)[0] << 32
    return Init(major, minor, max_readahead, flags)


def pack_init(minor: int, flags: int, *, max_readahead: int, background: int, max_write: int, max_pages: int) -> bytes:
    """What we take of the offer.

    `background` is how many requests that nobody waits for may be under way, `max_pages` the most that one request
    moves, in pages; `max_readahead` and `max_write` are bytes.
    """
    low = flags & 0xFFFF_FFFF
    congested = background * 3 // 4
    return _INIT_OUT.pack(
        MAJOR, minor, max_readahead, low, background, congested, max_write, 1, max_pages, 0, flags >> 32
    )


def pack_statfs(unit: int, blocks: int, files: int, name_length: int) -> bytes:
    """The reply to STATFS of a file system that is full: `blocks` of `unit` bytes."""
    return _STATFS_OUT.pack(blocks, 0, 0, files, 0, unit, name_length, unit, 0)


def pack_inval_inode(node: int) -> bytes:
    """A message that has the kernel drop what it keeps of a node's data and attributes."""
    return _INVAL_INODE.pack(_INVAL_INODE.size, NOTIFY_INVAL_INODE, 0, node, 0, 0)


def unpack_forgets(body: memoryview) -> Iterator[tuple[int, int]]:
    """Nodes, and how often each is forgotten, of a BATCH_FORGET."""
    count, _ = _BATCH_FORGET_IN.unpack_from(body)
    start = _BATCH_FORGET_IN.size
    return _FORGET_ONE.iter_unpack(body[start : start + count * _FORGET_ONE.size])


def direntplus_size(name_length: int) -> int:
    """How many bytes an entry of a READDIRPLUS takes."""
    return (_NAME_AT + name_length + 7) & ~7


def pack_device(major: int, minor: int) -> int:
    """A device number as attributes have it: in the kernel's 32 bits, which are not those of the C library."""
    return (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
