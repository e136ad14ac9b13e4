"""Nothing in a drive can be changed: by nobody, by no call, whichever way the file was reached."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine import write_files
from tests.integration.drive_bench import Bench

pytestmark = pytest.mark.fuse

_RENAME_EXCHANGE = 2


def _renameat2(old: Path, new: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def _attempts(root: Path, reading: int) -> dict[str, Callable[[], object]]:
    """Every call that would change something; `reading` is a descriptor of the file, open for reading."""
    file, folder, link, new = root / "file", root / "folder", root / "link", root / "new"
    descriptor = f"/proc/self/fd/{reading}"
    return {
        "write": lambda: os.open(file, os.O_WRONLY),
        "update": lambda: os.open(file, os.O_RDWR),
        "append": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        "truncate at opening": lambda: os.open(file, os.O_WRONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_WRONLY | os.O_CREAT),
        "unnamed": lambda: os.open(folder, os.O_WRONLY | os.O_TMPFILE),
        "through a descriptor": lambda: os.open(descriptor, os.O_WRONLY),
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
        "xattr that asks the binding for its stacks": lambda: os.setxattr(root, "user.fuse_stacktrace", b""),
    }


def _make_source(bench: Bench) -> None:
    write_files(bench.source, {"file": b"content", "folder/inner": b"x"})
    os.symlink("file", bench.source / "link")
    os.setxattr(bench.source / "file", "user.old", b"0")


def _not_refused(root: Path) -> dict[str, int | None]:
    """The calls that did not answer EROFS, with their errno, or 0 where they did it."""
    wrong: dict[str, int | None] = {}
    with open(root / "file", "rb") as reading:
        for name, attempt in _attempts(root, reading.fileno()).items():
            try:
                attempt()
                wrong[name] = 0
            except OSError as error:
                if error.errno != errno.EROFS:
                    wrong[name] = error.errno
    return wrong


def test_every_change_is_refused(bench: Bench) -> None:
    _make_source(bench)
    with bench.mounted_source() as mounted:
        assert _not_refused(mounted) == {}
        assert not os.access(mounted / "file", os.W_OK)
        assert (mounted / "file").read_bytes() == b"content"


@pytest.mark.root
def test_every_change_is_refused_after_root_remounts_it_writable(bench: Bench) -> None:
    _make_source(bench)
    with bench.drive(bench.backup()) as target:
        subprocess.run(["mount", "-i", "-o", "remount,rw", target], check=True)
        mounted = target / bench.source.relative_to("/")
        assert not os.statvfs(mounted).f_flag & os.ST_RDONLY
        wrong = _not_refused(mounted)
        wrong.pop("unnamed", None)  # the kernel answers by itself that this file system has no unnamed files
        assert wrong == {}
        assert (mounted / "file").read_bytes() == b"content"
        assert os.getxattr(mounted / "file", "user.old") == b"0"
