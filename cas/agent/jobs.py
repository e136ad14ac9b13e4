"""The record of every run of backup, restore and check: one JSON file a job.

A record is written when the job starts and again when it ends, so that a run that was killed is recognised by a record
that still says "running" while its process is gone.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from cas.agent.files import write_atomic
from cas.agent.home import Home
from cas.errors import BackdriveError, Interrupted
from cas.events import Warning

KEEP: Final = 1000
_MOST_WARNINGS: Final = 10_000  # kept in one record; their number is kept always


class Outcome(StrEnum):
    """How a job ended, or that it has not. KILLED is never written: it is what a dead process's RUNNING means."""

    RUNNING = "running"
    COMPLETED = "completed"
    WARNINGS = "completed with warnings"
    FAILED = "failed"
    CANCELLED = "cancelled"
    KILLED = "killed"


class EscapedPath(Struct, frozen=True):
    """A path that is not UTF-8: the bytes that are none are written as \\xNN, and a backslash is doubled."""

    path: str


class JobWarning(Struct, frozen=True):
    """Something that did not stop the job."""

    path: str | EscapedPath
    reason: str


class Job(Struct, kw_only=True):
    """One record. Times are UTC, as ISO 8601."""

    id: str
    kind: str
    vault: str
    started: str
    finished: str | None = None
    outcome: Outcome = Outcome.RUNNING
    exit_code: int | None = None
    point: str | None = None
    stats: dict[str, int] = {}
    message: str = ""
    warning_count: int = 0
    warnings: list[JobWarning] = []
    process: str = ""
    version: int = 1


def job_path(path: bytes) -> str | EscapedPath:
    """A path as a record holds it: text, or, where it is not UTF-8, an object that says that it is escaped."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return EscapedPath(path.replace(b"\\", b"\\\\").decode(errors="backslashreplace"))


def _text(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- one job --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Notes:
    """What a job tells of itself while it runs, for its record."""

    point: str | None = None
    stats: dict[str, int] = field(default_factory=dict)
    warnings: list[Warning] = field(default_factory=list)
    error: BaseException | None = None  # what makes it a failure although nothing was raised


@contextmanager
def recorded(
    home: Home, kind: str, vault: str, clock: Callable[[], int], code_of: Callable[[BaseException], int], warned: int
) -> Iterator[Notes]:
    """Keep the record of the job inside. `clock` gives ns; `code_of` the exit code of an error; `warned` is that of a
    job that completed with warnings.

    Raises NoSpace, CacheUnusable where the record cannot be written when the job starts; when it ends, what happened to
    the job matters more.
    """
    started = clock()
    name = datetime.fromtimestamp(started // 1_000_000_000, UTC).strftime("%Y%m%dT%H%M%SZ") + "-" + secrets.token_hex(4)
    job = Job(id=name, kind=kind, vault=vault, started=_text(started), process=_this_process())
    notes = Notes()
    _write(home, job)
    _prune(home)
    try:
        yield notes
    except BaseException as error:
        notes.error = error
        raise
    finally:
        _finish(home, job, notes, clock(), code_of, warned)


def _finish(home: Home, job: Job, notes: Notes, now: int, code_of: Callable[[BaseException], int], warned: int) -> None:
    error = notes.error
    if error is not None:
        cancelled = isinstance(error, KeyboardInterrupt | Interrupted)
        job.outcome = Outcome.CANCELLED if cancelled else Outcome.FAILED
        job.exit_code = code_of(error)
        job.message = str(error) or type(error).__name__
    else:
        job.outcome = Outcome.WARNINGS if notes.warnings else Outcome.COMPLETED
        job.exit_code = warned if notes.warnings else 0
    job.finished = _text(now)
    job.point = notes.point
    job.stats = notes.stats
    job.warning_count = len(notes.warnings)
    job.warnings = [JobWarning(job_path(warning.path), warning.reason) for warning in notes.warnings[:_MOST_WARNINGS]]
    with suppress(BackdriveError):
        _write(home, job)


def _write(home: Home, job: Job) -> None:
    job.message = _clean(job.message)
    job.warnings = [JobWarning(known.path, _clean(known.reason)) for known in job.warnings]
    document = msgspec.json.format(msgspec.json.encode(job), indent=1)
    write_atomic(home.jobs / f"{job.id}.json", document + b"\n")


def _clean(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # messages may hold names that are not UTF-8


def _files(home: Home) -> list[Path]:
    try:
        return sorted(path for path in home.jobs.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except OSError:
        return []


def _prune(home: Home) -> None:
    for path in _files(home)[:-KEEP]:
        with suppress(OSError):
            path.unlink()


# --- all jobs -------------------------------------------------------------------------------------------------------


def read_jobs(home: Home) -> Iterable[Job]:
    """Every record that can be read, oldest first."""
    for path in _files(home):
        try:
            job = msgspec.json.decode(path.read_bytes(), type=Job)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue  # cut short by a full disk or another hand: one record less
        if job.outcome == Outcome.RUNNING and not _alive(job.process):
            job.outcome = Outcome.KILLED
        yield job


def _this_process() -> str:
    pid = os.getpid()
    return f"{pid} {_start_of(pid)}"


def _start_of(pid: int) -> str:
    """When the process started, in the kernel's own count, so that a number given again is recognised; or nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _alive(process: str) -> bool:
    pid, _, start = process.partition(" ")
    if sys.platform != "linux" or not pid.isdigit():
        return True  # cannot be told here
    return _start_of(int(pid)) == start != ""
