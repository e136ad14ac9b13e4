"""Backup, restore and check as jobs: the task, with what this machine knows, inside its record."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from cas.agent.jobs import Notes, recorded
from cas.agent.registration import ensure_recorded
from cas.agent.session import Session, vault_directory
from cas.errors import Damaged, InvalidRequest
from cas.events import Event, Listener, Progress, Warning, ignore
from cas.model import Point
from cas.repository import Problems
from cas.tasks.requests import BackupRequest, BackupResult, Machine, RestoreRequest, RestoreResult

if TYPE_CHECKING:
    from cas.tasks.findings import CheckReport


@dataclass(frozen=True, slots=True)
class Edge:
    """What only the edge of the program knows: the clock in ns, and the exit codes of errors and of warnings."""

    clock: Callable[[], int]
    code_of: Callable[[BaseException], int]
    warned: int

    def utc_offset(self) -> int:
        """Seconds east of UTC here and now."""
        offset = datetime.fromtimestamp(self.clock() // 1_000_000_000).astimezone().utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """What a person asks of a backup. Paths may be relative."""

    paths: list[bytes]
    excludes: list[str] = field(default_factory=list)
    exclude_files: list[str] = field(default_factory=list)
    one_file_system: bool = False
    exclude_caches: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    force_full: bool = False
    dry_run: bool = False


def resolve_path(path: bytes) -> bytes:
    """The absolute path that is meant. Links on the way are followed; one at the end is meant itself, unless a slash
    follows it.
    """
    head, tail = os.path.split(path)
    if tail in (b"", b".", b".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(head or b"."), tail)


def read_patterns(file: str) -> list[str]:
    """The patterns of a file, one a line, as in a .gitignore: blank lines and those that start with # are skipped.

    Raises InvalidRequest.
    """
    try:
        with open(file, encoding="utf-8-sig") as lines:
            found = [line.rstrip("\r\n") for line in lines]
    except OSError as error:
        raise InvalidRequest(f"The file of patterns {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"The file of patterns {file} is not UTF-8 text.") from None
    return [line for line in found if line.strip() and not line.startswith("#")]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"The pattern or tag {text!r} is not UTF-8 text.") from None


def run_backup(session: Session, options: BackupOptions, edge: Edge, listen: Listener) -> BackupResult:
    """Protect the paths and record the job. Raises what `cas.tasks.backup.backup` raises, InvalidRequest."""
    from cas.tasks.backup import backup

    excludes = [*options.excludes, *(pattern for file in options.exclude_files for pattern in read_patterns(file))]
    for text in (*excludes, *options.tags, *options.tags.values()):
        _check_text(text)
    if session.damage is not None:
        raise session.damage
    home, repository = session.home, session.repository
    own = [os.fsencode(home.cache), vault_directory(session.registration)]
    request = BackupRequest(
        machine=Machine(session.registration.machine_id, session.registration.machine),
        paths=[resolve_path(path) for path in options.paths],
        excludes=excludes,
        one_file_system=options.one_file_system,
        exclude_caches=options.exclude_caches,
        tags=options.tags,
        force_full=options.force_full,
        dry_run=options.dry_run,
        skip=[path for path in own if path is not None],
        utc_offset=edge.utc_offset(),
    )
    if options.dry_run:
        return backup(repository, request, listen)
    with recorded(home, "backup", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        registration = ensure_recorded(home, session.registration, repository, edge.clock())
        request = replace(request, machine=Machine(registration.machine_id, registration.machine))
        result = backup(repository, request, _noting(notes, _expecting(session, request, listen)))
        notes.point = None if result.point is None else result.point.id
        notes.stats = result.stats
        notes.warnings = result.warnings
    return result


def _expecting(session: Session, request: BackupRequest, listen: Listener) -> Listener:
    """Add to the progress how much there will be, as far as the last point of the same paths tells."""
    if listen is ignore:
        return listen
    same = [
        point
        for point in session.repository.points(Problems())
        if point.machine_id == request.machine.id and set(point.paths) == set(request.paths)
    ]
    if not same:
        return listen
    last = same[-1].stats

    def expecting(event: Event) -> None:
        if isinstance(event, Progress) and event.total_size is None and event.size <= last.size:
            event = replace(event, total_files=last.files, total_size=last.size)
        listen(event)

    return expecting


def run_restore(session: Session, point: Point, request: RestoreRequest, edge: Edge, listen: Listener) -> RestoreResult:
    """Restore and record the job. Raises what `cas.tasks.restore.restore` raises."""
    from cas.tasks.restore import restore

    if request.dry_run:
        return restore(session.repository, point, request, listen)
    if session.damage is not None:
        listen(Warning(b"", str(session.damage)))
    with recorded(session.home, "restore", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        notes.point = point.id
        result = restore(session.repository, point, request, _noting(notes, listen))
        notes.stats = {name: count for name, count in asdict(result).items() if isinstance(count, int)}
        notes.warnings = result.warnings
    return result


def run_check(session: Session, read_percent: float, edge: Edge, listen: Listener) -> CheckReport:
    """Check the repository and record the job. Damage that was found is in the report."""
    from cas.tasks.check import check

    with recorded(session.home, "check", session.registration.name, edge.clock, edge.code_of, edge.warned) as notes:
        report = check(session.repository, read_percent, listen)
        notes.warnings = [Warning(problem.name.encode(), problem.reason) for problem in report.problems]
        if report.problems:
            notes.error = Damaged(f"{len(report.problems)} objects of the vault are damaged or missing.")
    return report


def _noting(notes: Notes, listen: Listener) -> Listener:
    """Keep warnings as they come: the record of a job that fails later should hold them too."""

    def both(event: Event) -> None:
        if isinstance(event, Warning):
            notes.warnings.append(event)
        listen(event)

    return both
