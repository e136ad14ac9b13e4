"""Generated trees with everything that a file system can hold, what a day does to them, and comparing two of them."""

from __future__ import annotations

import os
import random
import stat
import struct
import subprocess
from pathlib import Path
from typing import Final

_ODD_NAMES: Final = (
    b"\xff\xfe",
    b"caf\xe9",
    "漢字".encode(),
    b"-rf",
    b"*?[",
    b"back\\slash",
    b"tab\there",
    b"a\nb",
    b" ",
)
_ACL_VERSION: Final = 2
_NOBODY: Final = 0xFFFFFFFF


def differences(source: Path, drive: Path) -> str:
    """What rsync would do to make the drive equal to the source, by content and every attribute: nothing is no line."""
    command = ["rsync", "-nacHAX", "--delete", "--itemize-changes", f"{source}/", f"{drive}/"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout


def copy_tree(source: Path, target: Path) -> None:
    """A copy that `differences` finds none in. By cp: rsync loses the group's rights in ACLs of sticky directories."""
    subprocess.run(["cp", "-a", source, target], check=True)


def make_tree(root: Path, entries: int, make: random.Random) -> None:
    """Fill a directory with so many entries: one in eight a directory, the rest of all kinds."""
    folders = [os.fsencode(root)]
    files: list[bytes] = []
    for number in range(entries):
        name = b"%05d %b" % (number, make.choice(_ODD_NAMES)) if make.random() < 0.05 else b"entry %05d" % number
        path = make.choice(folders[-60:]) + b"/" + name
        kind = make.random()
        if kind < 0.125:
            os.mkdir(path, make.choice((0o755, 0o700, 0o1777, 0o2755)))
            folders.append(path)
        elif kind < 0.16:
            os.symlink(make.choice((b"entry 00001", b"../../nowhere", b"\xff" * 90)), path)
        elif kind < 0.165:
            os.mkfifo(path, 0o640)
        elif kind < 0.20 and files:
            os.link(make.choice(files), path)
        else:
            _write(path, make)
            files.append(path)
        if kind < 0.125 or kind >= 0.20:
            _decorate(path, make)
    for path in folders:
        os.utime(path, ns=(10**18, make.randrange(10**18, 2 * 10**18)))


def _write(path: bytes, make: random.Random) -> None:
    with open(path, "wb") as file:
        if make.random() < 0.02:
            file.truncate(make.randrange(1 << 20, 8 << 20))
            file.seek(make.randrange(1 << 20))
        file.write(make.randbytes(make.choice((0, 10, 500, 3000, 9000, 40_000))))
    os.chmod(path, make.choice((0o644, 0o600, 0o755, 0o4755, 0o440)))
    os.utime(path, ns=(10**18, make.randrange(10**18, 2 * 10**18)))


def _decorate(path: bytes, make: random.Random) -> None:
    """Some get an attribute, some an ACL."""
    chance = make.random()
    if chance < 0.04:
        os.setxattr(path, b"user.comment", make.randbytes(make.randrange(1, 300)))
    elif chance < 0.08:
        os.setxattr(path, b"system.posix_acl_access", _acl(make.randrange(1000, 2000)))


def _acl(user: int) -> bytes:
    """user::rwx, user:N:r-x, group::r-x, mask::r-x, other::r--"""
    entries = [(1, 7, _NOBODY), (2, 5, user), (4, 5, _NOBODY), (16, 5, _NOBODY), (32, 4, _NOBODY)]
    return struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def change_tree(root: Path, make: random.Random) -> None:
    """A day's work: in every twelfth file something is written, renamed, linked, removed or set."""
    for above, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = above + b"/" + name
            if make.random() >= 1 / 12 or not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            match make.randrange(6):
                case 0:
                    os.unlink(path)
                case 1:
                    os.rename(path, path + b" renamed")
                case 2:
                    os.link(path, path + b" linked %d" % make.randrange(1 << 30))
                case 3:
                    os.chmod(path, 0o604)
                case 4:
                    os.setxattr(path, b"user.day", make.randbytes(20))
                case 5:
                    os.chmod(path, 0o644)
                    with open(path, "r+b") as file:
                        file.seek(make.randrange(5000))
                        file.write(make.randbytes(2000))
        if make.random() < 0.1:
            new = above + b"/new %d" % make.randrange(1 << 30)
            os.mkdir(new)
            _write(new + b"/file", make)
