"""What the tasks are asked for, and what they answer: plain values that command line and job records share."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cas.events import Warning
from cas.ids import MachineId
from cas.model import Point


@dataclass(frozen=True, slots=True)
class Machine:
    """Who writes a point."""

    id: MachineId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """A run of backup. Paths are absolute bytes; times are ns; the clock is read by the caller and passed in."""

    machine: Machine
    paths: list[bytes]
    excludes: list[str] = field(default_factory=list)
    one_file_system: bool = False
    exclude_caches: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    force_full: bool = False  # read every file, whatever the last point says
    dry_run: bool = False
    skip: list[bytes] = field(default_factory=list)  # never protected: the agent's own cache, a vault on this machine
    utc_offset: int = 0


@dataclass(frozen=True, slots=True)
class BackupResult:
    """How a run ended. `point` is None for a dry run; `listed` is what a dry run would read or store anew."""

    point: Point | None
    stats: dict[str, int]
    warnings: list[Warning]


class Conflict(StrEnum):
    """What to do with a file that stands where one is to be restored."""

    COPY = "copy"
    OVERWRITE = "overwrite"
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """A run of restore. `items` are paths inside the point; none means all roots.

    With `target`, each item lands in it as `cp -a` would put it (ITEM's last name below `target`); without items all
    roots land below it with their full paths. Without `target`, everything returns to where it was.
    """

    items: list[bytes] = field(default_factory=list)
    target: Path | None = None
    conflict: Conflict = Conflict.COPY
    dry_run: bool = False
    verify: bool = False  # read back what was written and compare


@dataclass(frozen=True, slots=True)
class Planned:
    """What a dry run would do: `action` is "create", "replace", "copy", "link", "unchanged" or "skip"."""

    path: bytes  # in the target
    action: str


@dataclass(slots=True)
class RestoreResult:
    """Counts of one restore; sizes are bytes."""

    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0  # of the files written
    unchanged: int = 0  # files that were there already, equal in content
    skipped: int = 0  # left alone because of the conflict rule
    renamed: int = 0  # restored beside what was there
    verified: int = 0
    warnings: list[Warning] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)  # of a dry run, which counts as if it had been done
