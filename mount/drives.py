"""Background drives: start, list, stop.

Light to import: what opens a vault or talks to the kernel is in `mount/serve.py`, which the process of a drive runs. It
gets its request, the secret with it, through a pipe: nothing of it is in arguments, in the environment or on disk. A
JSON file a drive in the records directory says who serves what; the kernel's list of mounts says what is true.
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
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Final

from cas.errors import MountFailed

ALL_POINTS: Final = "all"
_FILE_SYSTEM: Final = b"fuse.backdrive"
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

# For glibc, and measured: blocks of a MiB come and go in several threads. One heap that keeps what is freed costs 30 MB
# less than a heap a thread, and spares the kernel from handing out zeroed pages for every block.
_MALLOC: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
}

_started: list[subprocess.Popen[bytes]] = []  # by this process, and not known to have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveRequest:
    """What to show, and where. `point` is a whole point id, or None for all points."""

    vault: str  # URL
    repository: str
    secret: bytes
    cache: Path
    point: str | None
    target: Path
    records: Path  # the directory of the drives' records
    log: Path | None  # of a background drive; None: nothing is logged
    vault_name: str = ""
    allow_other: bool | None = None  # None: where root mounts
    cache_bytes: int = 128 << 20

    def encode(self) -> bytes:
        """For the pipe to the drive's process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: os.fspath(value) if isinstance(value, Path) else value for name, value in values.items()}
        return json.dumps({**plain, "secret": self.secret.hex()}).encode()

    @staticmethod
    def decode(data: bytes) -> DriveRequest:
        """What `encode` gave."""
        values = json.loads(data)
        paths = {name: Path(values[name]) for name in ("cache", "target", "records", "log") if values[name] is not None}
        return DriveRequest(**{**values, **paths, "secret": bytes.fromhex(values["secret"])})


@dataclass(frozen=True, slots=True)
class Drive:
    """One drive as its record tells it. `since` is ns."""

    pid: int
    birth: int  # of the process, in ticks since boot: another process may get the same pid
    target: str
    point: str  # an id, or "all"
    since: int
    vault: str  # its name, or its URL where it has none
    made_target: bool
    log: str

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return process_birth(self.pid) == self.birth


# --- what the system knows --------------------------------------------------------------------------------------------


def process_birth(pid: int) -> int | None:
    """When a process began, in ticks since boot; None where there is none, or only its remains."""
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields_after_name[0] in (b"Z", b"X") else int(fields_after_name[19])


def mounted_targets() -> set[str]:
    """Where drives of ours are mounted, as the kernel has it, those of dead processes among them."""
    found = set()
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            parts = line.split(b" ")
            if parts[parts.index(b"-") + 1] == _FILE_SYSTEM:
                path = parts[4].decode("unicode_escape").encode("latin-1")  # blanks are written \040
                found.add(os.fsdecode(path))
    return found


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


# --- records ----------------------------------------------------------------------------------------------------------


def record_path(records: Path, target: str) -> Path:
    """Where the record of a target is."""
    return records / f"{blake2b(os.fsencode(target), digest_size=12).hexdigest()}.json"


def write_record(records: Path, drive: Drive) -> None:
    """Make or replace a drive's record. Raises MountFailed."""
    path = record_path(records, drive.target)
    temporary = path.with_suffix(f".{drive.pid}")
    try:
        records.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(asdict(drive)))
        temporary.replace(path)
    except OSError as error:
        raise MountFailed(f"The drive cannot be recorded in {records}: {error.strerror}.") from None


def _read_record(path: Path) -> Drive | None:
    try:
        return Drive(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def list_drives(records: Path) -> list[Drive]:
    """Every drive, the oldest first; those whose process is dead and whose mount is still there too.

    What is left of drives that are gone altogether is removed.
    """
    _reap()
    found = []
    mounted = mounted_targets()
    for path in records.glob("*.json"):
        drive = _read_record(path)
        if drive is None or (not drive.alive and drive.target not in mounted):
            with suppress(OSError):
                path.unlink()
            if drive is not None:
                remove_target(drive)
        else:
            found.append(drive)
    return sorted(found, key=lambda drive: drive.since)


def remove_target(drive: Drive) -> None:
    """Remove the directory that was made for a drive that is gone; one with something in it stays."""
    if drive.made_target:
        with suppress(OSError):
            os.rmdir(drive.target)


# --- start ------------------------------------------------------------------------------------------------------------


def prepare_target(target: Path) -> tuple[str, bool]:
    """The real path of the directory to mount on, and whether it was made just now. Raises MountFailed."""
    path = _mount_path(target)
    if path in mounted_targets():
        if _is_dead(path):
            raise MountFailed(f"{path} is a drive whose process has ended.", "Run 'backdrive unmount' first.")
        raise MountFailed(f"{path} is a drive already.", "Run 'backdrive unmount' first, or choose another directory.")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        try:
            os.mkdir(path)
        except OSError as error:
            raise MountFailed(f"{path} does not exist and cannot be made: {error.strerror}.") from None
        return path, True
    except OSError as error:
        raise MountFailed(f"{path} cannot be used: {error.strerror}.") from None
    if not stat.S_ISDIR(mode):
        raise MountFailed(f"{path} is not a directory.")
    return path, False


def start(request: DriveRequest) -> None:
    """Start a drive in the background; it is ready when this returns. Raises MountFailed with what the drive said."""
    environment = _without_secrets()
    root = os.fspath(Path(__file__).resolve().parent.parent)
    environment = {**_MALLOC, **environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    log = request.log or Path(os.devnull)
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise MountFailed(f"The drive's log {log} cannot be written: {error.strerror}.") from None
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
    if answer != "ready":
        process.wait()
        raise MountFailed(answer or _last_words(log, before, process.returncode), "")
    _reap()
    _started.append(process)


def _without_secrets() -> dict[str, str]:
    """The environment for other processes."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}


def _reap() -> None:
    """Let go of drives of this process that have ended: a program that lives long must not collect their remains."""
    _started[:] = [process for process in _started if process.poll() is None]


def _hand_over(process: subprocess.Popen[bytes], request: bytes) -> str:
    """Send the request; what the drive answers: "ready", what went wrong, or "" where it died."""
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as answers:
        try:
            with process.stdin as requests:
                requests.write(request)
        except BrokenPipeError:
            return ""
        try:
            return str(json.loads(answers.readline()))
        except ValueError:
            return ""


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
    record = record_path(records, path)
    drive = _read_record(record)
    if path not in mounted_targets():
        if drive is None:
            raise MountFailed(f"There is no drive at {path}.", "Run 'backdrive mounts' to see them.")
        if drive.alive:  # unmounted by other means, and not yet gone
            with suppress(OSError):
                os.kill(drive.pid, signal.SIGTERM)
    else:
        _unmount(path, lazily=_is_dead(path))
    if drive is not None:
        _await_end(drive)
        _reap()
        with suppress(OSError):
            record.unlink()
        remove_target(drive)


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
    holders = _holders(path)
    if holders:
        more = ", ..." if len(holders) > _SHOWN_HOLDERS else ""
        raise MountFailed(
            f"The drive at {path} is in use by {', '.join(holders[:_SHOWN_HOLDERS])}{more}.",
            "Close what is open in it, leave the directory, and try again.",
        )
    reason = done.stderr.decode(errors="replace").strip() or f"fusermount3 ended with code {done.returncode}"
    raise MountFailed(f"The drive at {path} cannot be unmounted: {reason}.")


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


__all__ = ["ALL_POINTS", "Drive", "DriveRequest", "list_drives", "start", "stop"]
