"""What is known of the drives that are open: a record each, what it has done so far, and what the kernel says.

Three files a drive in the records directory, named after its target: `.json` says who serves what, `.counters` how
much it was asked for, and the kernel's list of mounts says what is true.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar

from cas.errors import MountFailed, NoSpace

ALL_POINTS: Final = "all"
_FILE_SYSTEM: Final = b"fuse.backdrive"
_PUBLISH_SECONDS: Final = 1.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

T = TypeVar("T")


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
    boot: str = ""  # which run of the system it belongs to; "" in records of old
    shows: str = ""  # the folder of the point that is its root, or which of all points there are

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.boot in ("", boot_id()) and process_birth(self.pid) == self.birth


@dataclass(frozen=True, slots=True)
class Counters:
    """What a drive was asked for since it was opened, as it told a second ago or less."""

    requests: int = 0  # of the kernel, of any kind
    reads: int = 0
    read_bytes: int = 0
    errors: int = 0  # requests that failed because something could not be read
    cache_hits: int = 0  # blocks that were at hand
    cache_misses: int = 0  # blocks that had to be fetched


# --- what the system knows --------------------------------------------------------------------------------------------


def boot_id() -> str:
    """Which run of the system this is; "" where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_birth(pid: int) -> int | None:
    """When a process began, in ticks since boot; None where there is none, or only its remains."""
    try:
        fields_after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields_after_name[0] in (b"Z", b"X") else int(fields_after_name[19])


def _mounts() -> list[tuple[str, bytes]]:
    """Where something is mounted, as the kernel has it, and of which type it is."""
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            parts = line.split(b" ")
            path = parts[4].decode("unicode_escape").encode("latin-1")  # blanks are written \040
            found.append((os.fsdecode(path), parts[parts.index(b"-") + 1]))
    return found


def mounted_targets() -> set[str]:
    """Where drives of ours are mounted, as the kernel has it, those of dead processes among them."""
    return {path for path, kind in _mounts() if kind == _FILE_SYSTEM}


def mounted_below(target: str) -> list[str]:
    """Where other file systems are mounted inside a target."""
    return [path for path, _ in _mounts() if path.startswith(target + "/")]


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message or a log: what is not printable text is written as escapes, as `backdrive mounts` does."""
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in os.fsdecode(path))


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no text
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# --- records ----------------------------------------------------------------------------------------------------------


def record_path(records: Path, target: str) -> Path:
    """Where the record of a target is."""
    return records / f"{blake2b(os.fsencode(target), digest_size=12).hexdigest()}.json"


def counters_path(records: Path, target: str) -> Path:
    """Where a drive tells what it has done."""
    return record_path(records, target).with_suffix(".counters")


def no_room(error: OSError, path: Path) -> NoSpace | None:
    """What to raise where a file system of the machine's own is full."""
    return NoSpace("machine's own records", os.fspath(path)) if error.errno in _FULL else None


def write_record(records: Path, drive: Drive) -> None:
    """Make or replace a drive's record. Raises MountFailed, NoSpace."""
    try:
        records.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(record_path(records, drive.target), asdict(drive))
    except OSError as error:
        raise no_room(error, records) or MountFailed(
            f"The drive cannot be recorded in {shown(records)}: {error.strerror}."
        ) from None


def _replace(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_text(json.dumps(values))
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _read(path: Path, kind: Callable[..., T], known: set[str]) -> T | None:
    """A record, written by this version or another; None where it cannot be read."""
    try:
        values = json.loads(path.read_bytes())
        return kind(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


_DRIVE_FIELDS: Final = {field.name for field in fields(Drive)}
_COUNTERS_FIELDS: Final = {field.name for field in fields(Counters)}


def read_record(path: Path) -> Drive | None:
    """A drive's record, or None."""
    return _read(path, Drive, _DRIVE_FIELDS)


def remove_record(records: Path, target: str) -> None:
    """Remove all that is recorded of a drive."""
    for path in (record_path(records, target), counters_path(records, target)):
        with suppress(OSError):
            path.unlink()


def list_records(records: Path) -> list[Drive]:
    """Every drive, the oldest first; those whose process is dead and whose mount is still there too.

    What is left of drives that are gone altogether, of an earlier run of the system too, is removed.
    """
    found = []
    mounted = mounted_targets()
    for path in records.glob("*.json"):
        drive = read_record(path)
        if drive is None or (not drive.alive and drive.target not in mounted):
            for left in (path, path.with_suffix(".counters")):
                with suppress(OSError):
                    left.unlink()
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


# --- counters ---------------------------------------------------------------------------------------------------------


def read_counters(records: Path, drive: Drive) -> Counters | None:
    """What a drive has done so far; None where it does not tell, or its file is damaged or of another drive."""
    path = counters_path(records, drive.target)
    try:
        values = json.loads(path.read_bytes())
        if (values.pop("pid"), values.pop("birth")) != (drive.pid, drive.birth):
            return None
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    known = {name: value for name, value in values.items() if name in _COUNTERS_FIELDS and type(value) is int}
    return Counters(**known)


class Publisher:
    """Writes a drive's counters beside its record: at most once a second, and only where they have changed."""

    def __init__(self, records: Path, drive: Drive, count: Callable[[], Counters]) -> None:
        """`count` is called in a thread."""
        self._path = counters_path(records, drive.target)
        self._identity = {"pid": drive.pid, "birth": drive.birth}
        self._count = count
        self._told: Counters | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counters", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def close(self) -> None:
        """Publish nothing more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_PUBLISH_SECONDS)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._publish()
            self._stop.wait(_PUBLISH_SECONDS)

    def _publish(self) -> None:
        counters = self._count()
        if counters == self._told:
            return
        try:
            _replace(self._path, {**self._identity, **asdict(counters)})
            self._told = counters
        except OSError:
            pass  # the drive matters more than its counters: again in a second
