"""Backup: from the source through the writer to a committed recovery point."""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Callable, Container
from dataclasses import asdict
from typing import Final

import cas
from cas.errors import SourceUnreadable
from cas.events import Listener, Progress, Stage, Warning, ignore
from cas.ids import Bytes, ChunkId, PointId
from cas.model import Point, PointStats
from cas.repository import Problems, Repository
from cas.source.plan import normalise_paths, plan_paths
from cas.store.layout import new_id
from cas.store.pipeline import WriterCounts
from cas.tasks.announce import Announcement, announce_backup
from cas.tasks.backup_files import Counts, Sink, Warn, reason
from cas.tasks.backup_walk import Comparison, Walk
from cas.tasks.requests import BackupRequest, BackupResult

# A change in the same tick of the file system's clock as our reading would not show in ctime: whatever changed so
# shortly before the last run began, or since, is read again. Linux stamps files with a clock of 1 to 10 ms.
_CLOCK_TICK_NS: Final = 20_000_000
_COMPLETE_NOTE: Final = "complete "  # and a point's id: the index has held all its chunks since it was taken

Now = Callable[[], int]


class _Nowhere:
    """The sink of a dry run."""

    def chunk(self, data: Bytes) -> ChunkId:
        return ChunkId(bytes(32))

    def meta(self, data: bytes) -> ChunkId:
        return ChunkId(bytes(32))

    def file(self, readinto: Callable[[memoryview], int], size: int) -> tuple[bytes, int, int]:
        raise AssertionError("a dry run reads nothing")


def backup(
    repository: Repository, request: BackupRequest, listen: Listener = ignore, now: Now = time.time_ns
) -> BackupResult:
    """Protect `request.paths` and commit a point; a dry run walks and compares but reads and writes nothing.

    Raises SourceUnreadable where no path can be looked at at all, and what the vault and the cache raise. What was
    stored before an error is kept for the next run.
    """
    listen(Stage("preparing"))
    started = now()
    warnings: list[Warning] = []

    def warn(path: bytes, text: str) -> None:
        warning = Warning(path, text)
        warnings.append(warning)
        listen(warning)

    def warn_all(problems: Problems) -> None:
        for problem in problems.errors:
            warn(b"", str(problem))

    def choose(gone: set[str]) -> Point | None:
        return None if request.force_full else last_point(repository, request, paths, warn, gone)

    paths = normalise_paths(_readable(request.paths, warn))
    plan = plan_paths(paths)
    point = PointId(new_id())
    session: Announcement | None = None
    if request.dry_run:
        parent = choose(set())
    else:
        # What this run relies on is announced before the index says what is there: a collect waits for it, or the run
        # knows what is condemned.
        session, parent = announce_backup(repository, request.machine.id, point, now, choose)
    warn_all(repository.refresh())
    if session is not None and repository.condemned:
        session.renew(knows=sorted(repository.condemned))
    lost = repository.forget_lost_packs()
    if lost:
        warn(b"", f"{lost} packs are gone from the vault. What was in them is read again. Run 'backdrive check'.")

    def walk(sink: Sink, added: WriterCounts) -> Walk:
        previous = None if parent is None else _comparison(repository, parent)
        most = repository.parameters.single_most
        return Walk(request, sink, repository.reader(), previous, most, warn, _teller(listen, added, session))

    if session is None:
        dry = walk(_Nowhere(), WriterCounts())
        dry.tree(plan)
        return BackupResult(None, _stats(dry.counts, WriterCounts(), warnings), warnings)

    warn_all(repository.adopt_left(point))
    with repository.writer(point) as writer:
        listen(Stage("transferring"))
        run = walk(writer, writer.counts)
        root, root_node, root_owner = run.tree(plan)
        counts = writer.finish()
    stats = _stats(run.counts, counts, warnings)
    result = Point(
        id=point,
        machine_id=request.machine.id,
        machine=request.machine.name,
        started=started,
        finished=now(),
        paths=paths,
        root=root,
        root_node=root_node,
        root_owner=root_owner,
        mode="full" if parent is None else "incremental",
        parent=None if parent is None else parent.id,
        excludes=request.excludes,
        tags=request.tags,
        stats=PointStats(**stats),
        utc_offset=request.utc_offset,
        platform=platform.system().lower(),
        agent=cas.__version__,
    )
    session.must_be_timely()
    repository.commit(result)
    repository.index.note(_COMPLETE_NOTE + point)
    listen(Stage("done"))
    return BackupResult(result, stats, warnings)


def _readable(paths: list[bytes], warn: Warn) -> list[bytes]:
    """Those that exist. Raises SourceUnreadable where none does."""
    found = []
    for path in paths:
        try:
            status = os.lstat(path)
        except OSError as error:
            warn(path, reason(error))
            continue
        if stat.S_ISLNK(status.st_mode):
            warn(path, "It is a symbolic link: the link is protected, not what it leads to")
        found.append(path)
    if not found:
        raise SourceUnreadable(
            f"None of the paths can be read: {', '.join(os.fsdecode(path) for path in paths)}.",
            "Check their spelling and your rights.",
        )
    return found


def last_point(
    repository: Repository, request: BackupRequest, paths: list[bytes], warn: Warn, gone: Container[str] = ()
) -> Point | None:
    """The machine's point to compare with: the newest of the same paths, or else of those with most in common. None of
    those in `gone`."""
    problems = Problems()
    own = [
        point
        for point in repository.points(problems)
        if point.machine_id == request.machine.id and point.id not in gone
    ]
    for error in problems.errors:
        warn(b"", str(error))
    return max(own, key=lambda point: (_in_common(point.paths, paths), point.started), default=None)


def _in_common(old: list[bytes], new: list[bytes]) -> int:
    """How many of the new paths lie in old ones, twice as much where all are the same."""
    if old == new:
        return 2 * len(new)
    return sum(any(path == above or path.startswith(above.rstrip(b"/") + b"/") for above in old) for path in new)


def _comparison(repository: Repository, parent: Point) -> Comparison:
    trusted = bool(repository.index.notes(_COMPLETE_NOTE + parent.id))
    return Comparison(parent.root, parent.started - _CLOCK_TICK_NS, trusted)


def _teller(listen: Listener, added: WriterCounts, session: Announcement | None) -> Callable[[Counts, bytes], None]:
    progress = Progress()

    def tell(counts: Counts, path: bytes) -> None:
        if session is not None:
            session.keep_up()
        progress.files, progress.size, progress.read = counts.files, counts.size, counts.read
        progress.added = added.added
        progress.current = path
        listen(progress)

    return tell


def _stats(counts: Counts, added: WriterCounts, warnings: list[Warning]) -> dict[str, int]:
    return {**asdict(counts), "warnings": len(warnings), "added": added.added, "added_plain": added.added_plain}
