"""Nothing in a drive can be changed: by nobody, by no call, whichever way the file was reached."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.engine import write_files
from tests.integration.drive_bench import Bench, wait_for

pytestmark = pytest.mark.fuse

_RENAME_EXCHANGE = 2


def _renameat2(old: Path, new: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _open(path: Path | str, flags: int) -> None:
    os.close(os.open(path, flags))


def _attempts(root: Path, reading: int) -> dict[str, Callable[[], object]]:
    """Every call that would change something; `reading` is a descriptor of the file, open for reading."""
    file, folder, link, new = root / "file", root / "folder", root / "link", root / "new"
    descriptor = f"/proc/self/fd/{reading}"
    return {
        "write": lambda: _open(file, os.O_WRONLY),
        "update": lambda: _open(file, os.O_RDWR),
        "append": lambda: _open(file, os.O_WRONLY | os.O_APPEND),
        "truncate at opening": lambda: os.open(file, os.O_WRONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_WRONLY | os.O_CREAT),
        "unnamed": lambda: os.open(folder, os.O_WRONLY | os.O_TMPFILE),
        "through a descriptor": lambda: _open(descriptor, os.O_WRONLY),
        "truncate": lambda: os.truncate(file, 0),
        "truncate through a descriptor": lambda: os.truncate(descriptor, 0),
        "chmod": lambda: os.chmod(file, 0o600),
        "chmod through a descriptor": lambda: os.chmod(descriptor, 0o600),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "chown of a link": lambda: os.lchown(link, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(file),
        "mkdir": lambda: os.mkdir(new),
        "rmdir": lambda: os.rmdir(folder),
        "unlink": lambda: os.unlink(file),
        "rename": lambda: os.rename(file, new),
        "exchange": lambda: _renameat2(file, link),
        "hard link": lambda: os.link(file, new),
        "symlink": lambda: os.symlink("x", new),
        "fifo": lambda: os.mkfifo(new),
        "setxattr": lambda: os.setxattr(file, "user.new", b"1"),
        "replace xattr": lambda: os.setxattr(file, "user.old", b"1", os.XATTR_REPLACE),
        "removexattr": lambda: os.removexattr(file, "user.old"),
        "acl": lambda: os.setxattr(
            file,
            "system.posix_acl_access",
            bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff".replace(" ", "")),
        ),
        "xattr of the root": lambda: os.setxattr(root, "user.fuse_stacktrace", b""),
    }


def _make_source(bench: Bench) -> None:
    write_files(bench.source, {"file": b"content", "folder/inner": b"x"})
    os.symlink("file", bench.source / "link")
    os.setxattr(bench.source / "file", "user.old", b"0")


def _failing_otherwise(attempts: dict[str, Callable[[], object]]) -> dict[str, int | None]:
    """The calls that did not answer EROFS, with their errno, or 0 where they did it."""
    wrong: dict[str, int | None] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            wrong[name] = 0
        except OSError as error:
            if error.errno != errno.EROFS:
                wrong[name] = error.errno
    return wrong


def _not_refused(root: Path) -> dict[str, int | None]:
    with open(root / "file", "rb") as reading:
        return _failing_otherwise(_attempts(root, reading.fileno()))


def test_every_change_is_refused(bench: Bench) -> None:
    _make_source(bench)
    with bench.mounted_source() as mounted:
        assert _not_refused(mounted) == {}
        assert not os.access(mounted / "file", os.W_OK)
        assert (mounted / "file").read_bytes() == b"content"


# A kernel that was told that files need no opening does not ask when one is opened; it asks before anything is changed.
_ONLY_OPENED = {"write", "update", "append", "through a descriptor"}


def _changes(descriptor: int, other: int) -> dict[str, Callable[[], object]]:
    """Every way to change a file that is open for writing."""
    return {
        "write": lambda: os.write(descriptor, b"x"),
        "pwrite": lambda: os.pwrite(descriptor, b"x", 3),
        "truncate": lambda: os.ftruncate(descriptor, 1),
        "allocate": lambda: os.posix_fallocate(descriptor, 0, 100),
        "copy": lambda: os.copy_file_range(other, descriptor, 1, 0, 4),
        "send": lambda: os.sendfile(descriptor, other, 0, 1),
        "chmod": lambda: os.fchmod(descriptor, 0o600),
        "utime": lambda: os.utime(descriptor),
        "setxattr": lambda: os.setxattr(descriptor, "user.new", b"1"),
    }


@pytest.mark.root
def test_every_change_is_refused_after_root_remounts_it_writable(bench: Bench) -> None:
    _make_source(bench)
    with bench.drive(bench.backup()) as target:
        subprocess.run(["mount", "-i", "-o", "remount,rw", target], check=True)
        mounted = target / bench.source.relative_to("/")
        assert not os.statvfs(mounted).f_flag & os.ST_RDONLY
        wrong = _not_refused(mounted)
        assert {name: wrong.pop(name, 0) for name in _ONLY_OPENED} == dict.fromkeys(_ONLY_OPENED, 0)
        wrong.pop("unnamed", None)  # the kernel may answer by itself that this file system has no unnamed files
        assert wrong == {}
        with open(mounted / "file", "rb") as reading:
            for path in (mounted / "file", Path(f"/proc/self/fd/{reading.fileno()}")):
                descriptor = os.open(path, os.O_RDWR)
                try:
                    assert _failing_otherwise(_changes(descriptor, reading.fileno())) == {}
                finally:
                    os.close(descriptor)
        assert (mounted / "file").read_bytes() == b"content"
        assert os.getxattr(mounted / "file", "user.old") == b"0"


@pytest.mark.root
def test_what_is_written_to_memory_does_not_stay(bench: Bench) -> None:
    """A mapping of a file that is open for writing changes the kernel's copy: until it is written back."""
    _make_source(bench)
    with bench.drive(bench.backup()) as target:
        subprocess.run(["mount", "-i", "-o", "remount,rw", target], check=True)
        path = target / bench.source.relative_to("/") / "file"
        descriptor = os.open(path, os.O_RDWR)
        with mmap.mmap(descriptor, 0) as memory:
            memory[:3] = b"CON"
            with pytest.raises(OSError, match=r"Read-only file system|Input/output error"):
                memory.flush()
        with suppress(OSError):
            os.close(descriptor)
        wait_for(lambda: path.read_bytes() == b"content")
