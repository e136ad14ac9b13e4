"""Entries of a POSIX file system, read through directory descriptors: nobody can swap a link in under the walk."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import stat
from typing import Final

from cas.model import Extra, HardLink, Owner

_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECTORY
_NOATIME: Final = getattr(os, "O_NOATIME", 0)
_NO_XATTRS: Final = {errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EBADF, errno.ENODATA}

# File systems that the kernel makes up: their directories are kept, their content is not.
_PSEUDO: Final = frozenset(
    (
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    )
)

Listing = list[tuple[bytes, os.stat_result]]


def open_directory(name: bytes, parent: int | None) -> int:
    """A descriptor of a directory that is no link."""
    return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)


def open_file(name: bytes, parent: int) -> int:
    """A descriptor of a file that is no link; reading it leaves its access time alone where that is allowed."""
    if _NOATIME:
        try:
            return os.open(name, _OPEN_FILE | _NOATIME, dir_fd=parent)
        except PermissionError:  # only the owner and root may
            pass
    return os.open(name, _OPEN_FILE, dir_fd=parent)


def list_directory(directory: int) -> tuple[Listing, list[tuple[bytes, OSError]]]:
    """The entries with their attributes, sorted by name, and those that could not be looked at."""
    found: Listing = []
    failed: list[tuple[bytes, OSError]] = []
    fsencode = os.fsencode
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found.append((fsencode(entry.name), entry.stat(follow_symlinks=False)))
            except OSError as error:
                failed.append((fsencode(entry.name), error))
    found.sort(key=_name)
    return found, failed


def _name(entry: tuple[bytes, os.stat_result]) -> bytes:
    return entry[0]


def read_xattrs(where: int | bytes) -> dict[bytes, bytes]:
    """Extended attributes, POSIX ACLs among them, of an open file or of a path whose last part is not followed."""
    try:
        names = os.listxattr(where) if isinstance(where, int) else os.listxattr(where, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return {}
        raise
    if not names:
        return {}
    values: dict[bytes, bytes] = {}
    for name in names:
        try:
            value = (
                os.getxattr(where, name) if isinstance(where, int) else os.getxattr(where, name, follow_symlinks=False)
            )
        except OSError as error:
            if error.errno in _NO_XATTRS:  # gone meanwhile, or of a namespace we may not read
                continue
            raise
        values[os.fsencode(name)] = value
    return values


def path_below(parent: int, name: bytes) -> bytes:
    """A path for calls that take no directory descriptor."""
    return b"/proc/self/fd/%d/%s" % (parent, name)


def extra_of(st: os.stat_result, xattrs: dict[bytes, bytes], extents: list[tuple[int, int]] | None) -> Extra | None:
    """What a node has beyond the ordinary, or None."""
    mode = st.st_mode
    device = (os.major(st.st_rdev), os.minor(st.st_rdev)) if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None
    link = HardLink(st.st_dev, st.st_nlink) if st.st_nlink > 1 and not stat.S_ISDIR(mode) else None
    if xattrs or device or link or extents is not None:
        return Extra(xattrs=xattrs, device=device, link=link, extents=extents)
    return None


def data_extents(file: int, st: os.stat_result) -> list[tuple[int, int]] | None:
    """(offset, length) of what is not a hole, or None where the file has no holes."""
    size = st.st_size
    if st.st_blocks * 512 >= size:
        return None
    extents: list[tuple[int, int]] = []
    position = 0
    try:
        while position < size:
            try:
                start = os.lseek(file, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                raise
            if start >= size:
                break
            position = min(os.lseek(file, start, os.SEEK_HOLE), size)
            extents.append((start, position - start))
    except OSError:  # a file system that does not tell
        extents = [(0, size)]
    os.lseek(file, 0, os.SEEK_SET)
    return None if extents == [(0, size)] else extents


class Owners:
    """Names of users and groups, looked up once for each pair of ids."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Owner] = {}

    def __call__(self, uid: int, gid: int) -> Owner:
        owner = self._known.get((uid, gid))
        if owner is None:
            try:
                user = os.fsencode(pwd.getpwuid(uid).pw_name)
            except KeyError:
                user = b""
            try:
                group = os.fsencode(grp.getgrgid(gid).gr_name)
            except KeyError:
                group = b""
            owner = self._known[uid, gid] = Owner(uid, gid, user, group)
        return owner


def pseudo_devices() -> frozenset[int]:
    """The device numbers of mounted file systems that hold no files of anybody's."""
    devices = set()
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            for line in lines:
                fields = line.split()
                major, minor = fields[2].split(b":")
                if fields[fields.index(b"-") + 1].decode(errors="replace") in _PSEUDO:
                    devices.add(os.makedev(int(major), int(minor)))
    except (OSError, ValueError, IndexError):
        pass  # no such list on this system: nothing is left out
    return frozenset(devices)


def allow_many_open_files() -> None:
    """Raise the soft limit to the hard one: a walk holds a descriptor for each level of directories."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # then the usual limit it is


class ExtentReader:
    """`readinto` over the data of a sparse file, one extent after the other."""

    def __init__(self, file: int, extents: list[tuple[int, int]]) -> None:
        self._file = file
        self._extents = iter(extents)
        self._offset = self._left = 0

    def __call__(self, view: memoryview) -> int:
        while not self._left:
            extent = next(self._extents, None)
            if extent is None:
                return 0
            self._offset, self._left = extent
        part = view[: self._left]
        count = os.preadv(self._file, [part], self._offset)
        if count == 0:  # the file has shrunk: what is missing reads as zeros, and the caller sees the change
            part[:] = bytes(len(part))
            count = len(part)
        self._offset += count
        self._left -= count
        return count
