"""Mounting and unmounting a FUSE file system: by system calls for root, through fusermount3 for everybody else."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from cas.errors import MountFailed
from mount.records import shown

_DEVICE: Final = "/dev/fuse"
_HELPER: Final = "fusermount3"
_COMMUNICATION: Final = "_FUSE_COMMFD"  # the helper hands the opened device over through the socket that this names
_NAME: Final = "backdrive"
_TYPE: Final = b"fuse.backdrive"

# Of mount(2) and umount2(2), as linux/mount.h has them.
_RDONLY: Final = 1
_NOSUID: Final = 2
_NODEV: Final = 4
_NOATIME: Final = 1024
_DETACH: Final = 2
_NOFOLLOW: Final = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def attach(target: str, *, allow_other: bool) -> int:
    """Mount on a directory; the descriptor of the device to answer on. Nothing answers yet. Raises MountFailed."""
    if os.geteuid() == 0:
        try:
            return _mount(target, allow_other)
        except PermissionError:
            pass  # root in a container that may not mount by itself
        except OSError as error:
            raise _failed(target, error.strerror) from None
    return _mount_through_helper(target, allow_other)


def detach(target: str, *, lazily: bool) -> bool:
    """Unmount; whether that worked. `lazily`: also where it is in use, for whom it stays until they let go."""
    if os.geteuid() == 0 and _libc.umount2(os.fsencode(target), _NOFOLLOW | (_DETACH if lazily else 0)) == 0:
        return True
    if os.geteuid() == 0 and ctypes.get_errno() != errno.EPERM:
        return False
    command = [_HELPER, "-u", "-q", *(["-z"] if lazily else []), "--", target]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_environment())
    except OSError:
        return False
    return done.returncode == 0


def raise_read_ahead(target: str, kib: int) -> None:
    """Have the kernel read further ahead than its default of 128 KiB, where we may: only root may."""
    with suppress(OSError):
        device = os.stat(target).st_dev
        Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(str(kib))


def _mount(target: str, allow_other: bool) -> int:
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode={stat.S_IFDIR:o},user_id={os.geteuid()},group_id={os.getegid()}"
    options += ",default_permissions" + (",allow_other" if allow_other else "")
    flags = _RDONLY | _NOSUID | _NODEV | _NOATIME
    if _libc.mount(_NAME.encode(), os.fsencode(target), _TYPE, flags, options.encode()) != 0:
        number = ctypes.get_errno()
        os.close(device)
        raise OSError(number, os.strerror(number))
    return device


def _mount_through_helper(target: str, allow_other: bool) -> int:
    options = f"ro,nosuid,nodev,noatime,default_permissions,fsname={_NAME},subtype={_NAME}"
    options += ",allow_other" if allow_other else ""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            helper = subprocess.Popen(
                [_HELPER, "-o", options, "--", target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env={**_environment(), _COMMUNICATION: str(theirs.fileno())},
            )
        except OSError as error:
            raise MountFailed(
                f"There is no {_HELPER} to mount with ({error.strerror}).", "Install the system's package fuse3."
            ) from None
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        _, told = helper.communicate()
    if not descriptors:
        lines = told.decode(errors="replace").strip().splitlines()
        raise _failed(target, lines[-1] if lines else f"{_HELPER} ended with code {helper.returncode}")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _environment() -> dict[str, str]:
    """For the helper: it runs with privileges, and needs to know nothing of us."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _failed(target: str, reason: str | None) -> MountFailed:
    return MountFailed(f"The drive cannot be mounted at {shown(target)} ({reason}).")
