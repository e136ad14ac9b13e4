"""Background drives: start, list, stop.

Light to import: what opens a vault or talks to the kernel is in `mount/serve.py`, which the process of a drive runs. It
gets its request, the secret with it, through a pipe: nothing of it is in arguments, in the environment or on disk.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from cas import errors
from cas.errors import BackdriveError, MountFailed
from mount.filters import PointFilter
from mount.records import (
    ALL_POINTS,
    Counters,
    Drive,
    list_records,
    mounted_below,
    mounted_targets,
    no_room,
    process_birth,
    read_counters,
    read_record,
    record_path,
    remove_record,
    remove_target,
    shown,
)

_STOP_SECONDS: Final = 10.0  # that a drive has to end after it was unmounted
_SECRETS: Final = ("BACKDRIVE_PASSPHRASE", "BACKDRIVE_NEW_PASSPHRASE")
_PROBE_SECONDS: Final = 5
_PROBE: Final = """
import os, sys
try:
    os.statvfs(sys.argv[1])  # not stat: the kernel would answer that from memory
except OSError as error:
    sys.exit(error.errno)
"""
_SHOWN_HOLDERS: Final = 3
_SYSTEM: Final = ("/proc", "/sys")  # the kernel's own: it shows there what it likes

# For glibc, and measured: blocks of a MiB come and go in several threads. One heap that keeps what is freed costs 30 MB
# less than a heap a thread, and spares the kernel from handing out zeroed pages for every block.
_MALLOC: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}

_started: list[subprocess.Popen[bytes]] = []  # by this process, and not known to have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveRequest:
    """What to show, how, and where. `point` is a whole point id, or None for all points that `only` leaves."""

    vault: str  # URL
    repository: str
    secret: bytes
    cache: Path
    point: str | None
    target: Path
    records: Path  # the directory of the drives' records
    log: Path | None  # of a background drive; None: nothing is logged
    machine: str = ""  # this machine's id
    vault_name: str = ""
    folder: str | None = None  # in the point, as `os.fsdecode` gives it: the root of the drive
    layout: str = "time"  # a mount.timeline.Layout
    only: PointFilter = field(default_factory=PointFilter)
    allow_other: bool | None = None  # None: where root mounts
    uid: int | None = None  # who owns everything in the drive; None: as the point has it
    gid: int | None = None
    umask: int | None = None  # taken from all modes
    cache_bytes: int = 128 << 20
    disk_cache: Path | None = None  # a directory for what was read of the vault
    disk_cache_bytes: int = 0

    def encode(self) -> bytes:
        """For the pipe to the drive's process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in values.items()}
        return json.dumps({**plain, "secret": self.secret.hex(), "only": self.only.encode()}).encode()

    @staticmethod
    def decode(data: bytes) -> DriveRequest:
        """What `encode` gave."""
        values = json.loads(data)
        names = ("cache", "target", "records", "log", "disk_cache")
        paths = {name: Path(values[name]) for name in names if values[name] is not None}
        only = PointFilter.decode(values["only"])
        return DriveRequest(**{**values, **paths, "secret": bytes.fromhex(values["secret"]), "only": only})


class Ready(NamedTuple):
    """What a drive tells when it answers."""

    points: int  # that it shows now
    machines: tuple[str, ...] = ()  # those that have points, where the one that was asked for has none


def list_drives(records: Path) -> list[Drive]:
    """Every drive, the oldest first; those whose process is dead and whose mount is still there too.

    What is left of drives that are gone altogether is removed.
    """
    _reap()
    return list_records(records)


# --- start ------------------------------------------------------------------------------------------------------------


def prepare_target(target: Path, needed: Iterable[Path] = ()) -> tuple[str, bool]:
    """The real path of the directory to mount on, and whether it was made just now. Raises MountFailed.

    `needed` are directories that the drive itself reads, and must not hide.
    """
    path = _mount_path(target)
    named = (path, os.path.abspath(target))  # /proc/self/... leads elsewhere for each process
    if path == "/" or any(name == top or name.startswith(top + "/") for name in named for top in _SYSTEM):
        raise MountFailed(f"{shown(path)} belongs to the system, and cannot be a drive.", "Choose another directory.")
    for directory in needed:
        place = os.path.realpath(directory)
        if place == path or place.startswith(path + "/"):
            raise MountFailed(
                f"A drive at {shown(path)} would hide {shown(place)}, which it needs itself.",
                "Choose another directory.",
            )
    if path in mounted_targets():
        if _is_dead(path):
            raise MountFailed(f"{shown(path)} is a drive whose process has ended.", "Run 'backdrive unmount' first.")
        raise MountFailed(
            f"{shown(path)} is a drive already.", "Run 'backdrive unmount' first, or choose another directory."
        )
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        try:
            os.mkdir(path)
        except OSError as error:
            raise MountFailed(f"{shown(path)} does not exist and cannot be made: {error.strerror}.") from None
        return path, True
    except OSError as error:
        raise MountFailed(f"{shown(path)} cannot be used: {error.strerror}.") from None
    if not stat.S_ISDIR(mode):
        raise MountFailed(f"{shown(path)} is not a directory.")
    return path, False


def start(request: DriveRequest) -> Ready:
    """Start a drive in the background; it is ready when this returns.

    Raises what the drive's process could not do, as `mount.serve.run` raises it, and NoSpace.
    """
    environment = _without_secrets()
    root = os.fspath(Path(__file__).resolve().parent.parent)
    environment = {**_MALLOC, **environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    log = request.log or Path(os.devnull)
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise no_room(error, log) or MountFailed(
            f"The drive's log {shown(log)} cannot be written: {error.strerror}."
        ) from None
    try:
        before = os.fstat(output).st_size
        process = subprocess.Popen(
            [sys.executable, "-m", "mount.serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=environment,
            cwd="/",
            start_new_session=True,  # Ctrl-C in the terminal is not for the drive
        )
    finally:
        os.close(output)
    try:
        answer = _hand_over(process, request.encode())
    except BaseException:
        process.terminate()
        raise
    if "points" not in answer:
        process.wait()
        raise _error(answer) if answer else MountFailed(_last_words(log, before, process.returncode))
    _reap()
    _started.append(process)
    return Ready(int(answer["points"]), tuple(answer["machines"]))


def answer_of(error: BackdriveError) -> dict[str, Any]:
    """An error as the drive's process tells it to whoever started it."""
    return {"error": type(error).__name__, "message": str(error.args[0]), "advice": error.advice}


def _error(answer: dict[str, Any]) -> BackdriveError:
    """The error that `answer_of` told: of the same class, because the exit code hangs on it."""
    kind = getattr(errors, str(answer.get("error")), None)
    if not (isinstance(kind, type) and issubclass(kind, BackdriveError)):
        kind = MountFailed
    found: BackdriveError = kind.__new__(kind)
    BackdriveError.__init__(found, str(answer.get("message")), str(answer.get("advice", "")))
    return found


def _without_secrets() -> dict[str, str]:
    """The environment for other processes."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def _reap() -> None:
    """Let go of drives of this process that have ended: a program that lives long must not collect their remains."""
    _started[:] = [process for process in _started if process.poll() is None]


def _hand_over(process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
    """Send the request; what the drive answers: how many points it shows, what went wrong, or nothing: it died."""
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as answers:
        try:
            with process.stdin as requests:
                requests.write(request)
        except BrokenPipeError:
            return {}
        try:
            return dict(json.loads(answers.readline()))
        except (ValueError, TypeError):
            return {}


def _last_words(log: Path, before: int, code: int | None) -> str:
    with suppress(OSError), log.open("rb") as lines:
        lines.seek(before)
        words = lines.read().decode(errors="replace").strip().splitlines()
        if words:
            return f"The drive's process ended: {words[-1]}"
    return f"The drive's process ended with code {code}."


# --- stop -------------------------------------------------------------------------------------------------------------


def stop(target: Path, records: Path) -> None:
    """Unmount a drive and wait for its process; clean up what a dead one left.

    Raises MountFailed where there is no drive, or where a program uses it.
    """
    path = _mount_path(target)
    drive = read_record(record_path(records, path))
    if path not in mounted_targets():
        if drive is None:
            raise MountFailed(f"There is no drive at {shown(path)}.", "Run 'backdrive mounts' to see them.")
        if drive.alive:  # unmounted by other means, and not yet gone
            with suppress(OSError):
                os.kill(drive.pid, signal.SIGTERM)
    else:
        _unmount(path, lazily=_is_dead(path))
    if drive is not None:
        _await_end(drive)
        _reap()
        remove_record(records, path)
        remove_target(drive)


def _holders(target: str) -> list[str]:
    """Which programs have files or their working directory below the target, as far as we may see."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            links = [process / "cwd", *(process / "fd").iterdir()]
            if any(_is_below(link, target) for link in links):
                found.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
    return found


def _is_below(link: Path, target: str) -> bool:
    try:
        path = os.readlink(link)
    except OSError:
        return False
    return path == target or path.startswith(target + "/")


def _is_dead(path: str) -> bool:
    """Whether nobody answers for the mount any more.

    Asked in a process of its own: where the drive's process hangs, whoever asks hangs with it.
    """
    probe = subprocess.Popen([sys.executable, "-I", "-S", "-c", _PROBE, path])
    try:
        return probe.wait(_PROBE_SECONDS) in (errno.ENOTCONN, errno.ECONNABORTED)
    except subprocess.TimeoutExpired:
        probe.kill()
        return True


def _mount_path(target: Path) -> str:
    """The real path, found without touching what may be a drive whose process hangs."""
    absolute = os.path.abspath(target)
    mounted = mounted_targets()
    if absolute in mounted:
        return absolute
    parent, name = os.path.split(absolute)
    path = os.path.join(os.path.realpath(parent), name)
    return path if path in mounted else os.path.realpath(path)


def _unmount(path: str, lazily: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazily else []), "--", path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_without_secrets()
        )
    except FileNotFoundError:
        raise MountFailed("There is no fusermount3 to unmount with.", "Install the system's package fuse3.") from None
    if done.returncode == 0 or path not in mounted_targets():
        return
    inside = mounted_below(path)
    if inside:
        more = ", ..." if len(inside) > _SHOWN_HOLDERS else ""
        raise MountFailed(
            f"The drive at {shown(path)} cannot be closed, because another file system is mounted inside it: "
            f"{', '.join(map(shown, inside[:_SHOWN_HOLDERS]))}{more}.",
            "Unmount that first.",
        )
    holders = _holders(path)
    if holders:
        more = ", ..." if len(holders) > _SHOWN_HOLDERS else ""
        raise MountFailed(
            f"The drive at {shown(path)} is in use by {', '.join(holders[:_SHOWN_HOLDERS])}{more}.",
            "Close what is open in it, leave the directory, and try again.",
        )
    reason = shown(done.stderr.decode(errors="replace").strip()) or f"fusermount3 ended with code {done.returncode}"
    raise MountFailed(f"The drive at {shown(path)} cannot be unmounted: {reason}.")


def _await_end(drive: Drive) -> None:
    deadline = time.monotonic() + _STOP_SECONDS
    for pause in _pauses():
        if not drive.alive:
            return
        if time.monotonic() > deadline:
            # Nothing is mounted any more: a read that hangs in the vault must not keep the process.
            with suppress(OSError):
                os.kill(drive.pid, signal.SIGKILL)
            return
        time.sleep(pause)


def _pauses() -> Iterator[float]:
    pause = 0.005
    while True:
        yield pause
        pause = min(pause * 1.5, 0.2)


__all__ = [
    "ALL_POINTS",
    "Counters",
    "Drive",
    "DriveRequest",
    "Ready",
    "list_drives",
    "mounted_targets",
    "process_birth",
    "read_counters",
    "start",
    "stop",
]
