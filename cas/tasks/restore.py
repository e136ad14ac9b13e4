"""Restore: from a recovery point back to the file system.

The walk decides, in the order in which the point keeps its entries, because in that order their data lies in the vault;
other threads open the blocks ahead of it and write the files behind it. Nothing is ever written through a link below
the target, whatever the point says and whoever else works in the target meanwhile.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from typing import Final

from cas.errors import TargetUnusable
from cas.events import Event, Listener, Progress, Stage, Warning, ignore
from cas.ids import ChunkId
from cas.model import Node, Owner, Point
from cas.repository import Repository
from cas.store.reader import Reader
from cas.target.attributes import Attributes, Ids
from cas.target.directory import Directory, open_root
from cas.tasks.browse import parts_of, resolve, root_of
from cas.tasks.requests import Conflict, Planned, RestoreRequest, RestoreResult
from cas.tasks.restore_feed import Feed
from cas.tasks.restore_jobs import Action, Job
from cas.tasks.restore_plan import Blocked, Planner
from cas.tasks.restore_process import WriterProcess
from cas.tasks.restore_write import ENTRY_FAULTS, WRITERS, Workers, raise_if_fatal, reason_of

_READER_BYTES: Final = 64 << 20
_TELL_SECONDS: Final = 0.1
_MANY: Final = 256  # files

Selection = dict[bytes, "Selection | None"]
"""Which names of a directory are wanted: below a name everything (None), or only some."""


def restore(repository: Repository, point: Point, request: RestoreRequest, listen: Listener = ignore) -> RestoreResult:
    """Give back what `request` asks for. A fault of one entry becomes a warning, and the run goes on.

    Events come from the calling thread. Raises PathNotFound before anything is written; TargetUnusable, NoSpace, and
    the errors of the vault as a whole. Whatever ends a run leaves no unfinished file under its final name, and the next
    run goes on from there.
    """
    listen(Stage("preparing"))
    result = RestoreResult()
    for problem in repository.refresh().errors:
        warning = Warning(b"", str(problem))
        result.warnings.append(warning)
        listen(warning)
    reader = repository.reader(_READER_BYTES)
    items = [b"/" + b"/".join(parts) for item in request.items if (parts := parts_of(item))]
    if len(items) < len(request.items):
        items = []  # the root was among them
    found = [resolve(reader, point, item) for item in items]
    many = any(node.is_directory for node, _ in found) if items else point.stats.files >= _MANY
    run = _Run(repository, reader, point, request, result, listen, many=many)
    listen(Stage("transferring"))
    run.run(items, found)
    listen(Stage("done"))
    return result


class _Frame:
    """A directory that the walk is in."""

    __slots__ = ("directory", "entries")

    def __init__(self, directory: Directory, entries: Iterator[tuple[Node, Ids, Selection | None]]) -> None:
        self.directory = directory
        self.entries = entries


class _Run:
    """One restore. The walk has a thread of its own, so that Ctrl-C finds the calling one at no delicate point."""

    def __init__(
        self,
        repository: Repository,
        reader: Reader,
        point: Point,
        request: RestoreRequest,
        result: RestoreResult,
        listen: Listener,
        *,
        many: bool,
    ) -> None:
        """`many`: enough entries are to be expected that processes of their own pay for them."""
        self._reader = reader
        self._point = point
        self._request = request
        self._result = result
        self._listen = listen
        self._dry = request.dry_run
        self._target = b"/" if request.target is None else os.path.abspath(os.fsencode(request.target))
        self._made_target = False
        self._told = 0
        self._attributes = Attributes(self._warn)
        self._planner = Planner(point, request.conflict, verify=request.verify)
        self._workers = Workers(
            reader,
            repository.index,
            self._attributes,
            result,
            target=os.fsdecode(self._target),
            verify=request.verify,
            processes=_processes(repository) if many and not (request.dry_run or request.verify) else (),
        )
        self._failure: BaseException | None = None
        self._feed = Feed(reader, self._workers)
        self._current = b""

    def _warn(self, path: bytes, reason: str) -> None:
        self._result.warnings.append(Warning(path, reason))

    # --- the calling thread ---

    def run(self, items: list[bytes], found: list[tuple[Node, Owner]]) -> None:
        """Do all of it."""
        walk = threading.Thread(target=self._guarded, args=(items, found), name="plan", daemon=True)
        progress = Progress()
        if not items:
            progress.total_files, progress.total_size = self._point.stats.files, self._point.stats.size
        walk.start()
        try:
            while walk.is_alive():
                walk.join(_TELL_SECONDS)
                self._tell(progress)
        except BaseException as error:
            self._workers.fail(error)
            walk.join()
            raise
        self._tell(progress)
        if self._failure is not None:
            raise self._failure

    def _tell(self, progress: Progress) -> None:
        warnings = self._result.warnings
        events: list[Event] = [*warnings[self._told :]]
        self._told += len(events)
        result = self._result
        progress.files = result.files + result.unchanged + result.skipped
        progress.size = progress.read = self._workers.done_bytes
        progress.current = self._current
        for event in (*events, progress):
            self._listen(event)

    # --- the walk ---

    def _guarded(self, items: list[bytes], found: list[tuple[Node, Owner]]) -> None:
        try:
            with self._workers as workers:
                self._everything(items, found)
                workers.finish()
        except BaseException as error:  # noqa: BLE001 - raised in the calling thread
            self._failure = error

    def _everything(self, items: list[bytes], found: list[tuple[Node, Owner]]) -> None:
        root = self._open_target()
        try:
            if items and self._request.target is not None:
                self._restore_items(root, found)
            else:
                node, owner = root_of(self._point)
                partial = node.extra is not None and node.extra.partial
                if not items and not partial and (self._made_target or self._replaces_attributes()):
                    root.wish = (node, self._attributes.ids_of(owner))
                selection = _selection(items) if items else None
                root.hold()
                self._walk(_Frame(root, self._entries(ChunkId(self._point.root), selection)))
            self._feed.flush()
        finally:
            self._feed.abandon()
            root.release()

    def _replaces_attributes(self) -> bool:
        """Whether directories that are there get the attributes of the point."""
        return self._request.conflict is Conflict.OVERWRITE

    def _open_target(self) -> Directory:
        """The target's root. Raises TargetUnusable, NoSpace."""
        path = self._target
        try:
            if not os.path.lexists(path):
                if self._dry:
                    return Directory(self._attributes, None, path, -1)
                os.makedirs(path)
                self._made_target = True
            root = open_root(self._attributes, path)
            root.names = root.list(clean=not self._dry)
        except OSError as error:
            raise_if_fatal(error, os.fsdecode(path))
            raise TargetUnusable(
                f"Nothing can be restored to {os.fsdecode(path)}: {reason_of(error)}.",
                "Choose another directory with --to, or make this one accessible.",
            ) from None
        writable = self._dry or self._request.target is None or os.access(path, os.W_OK | os.X_OK, effective_ids=True)
        if not writable:
            root.release()
            raise TargetUnusable(
                f"The directory {os.fsdecode(path)} cannot be written.", "Choose another one, or make it writable."
            )
        return root

    def _restore_items(self, root: Directory, found: list[tuple[Node, Owner]]) -> None:
        """Each into the root, under its last name; items of the same name one after the other."""
        used: set[bytes] = set()
        for node, owner in found:
            if node.name in used and not self._dry:
                self._feed.flush()
                self._workers.drain()
                root.names = root.list(clean=False)
            used.add(node.name)
            entry: tuple[Node, Ids, Selection | None] = (node, self._attributes.ids_of(owner), None)
            root.hold()
            self._walk(_Frame(root, iter([entry])))

    def _entries(self, tree: ChunkId, selection: Selection | None) -> Iterator[tuple[Node, Ids, Selection | None]]:
        """The wanted entries of a directory of the point, and what is wanted of those."""
        ids_of = self._attributes.ids_of
        if selection is not None:
            for name, below in sorted(selection.items()):
                found = self._reader.lookup(tree, name)
                if found is not None:
                    yield found[0], ids_of(found[1]), below
            return
        for page in self._reader.pages(tree):
            ids = [ids_of(owner) for owner in page.owners]
            for node in page.nodes:
                yield node, ids[node.owner], None

    def _walk(self, frame: _Frame) -> None:
        """Everything in a directory and below it. Gives back the hold of each frame's directory."""
        stack = [frame]
        try:
            while stack:
                frame = stack[-1]
                try:
                    child = self._next_directory(frame)
                except ENTRY_FAULTS as error:  # of the point's listing: what is left of it cannot be known
                    self._fault(frame.directory.path, error)
                    child = None
                if child is not None:
                    frame.directory.rest()
                    stack.append(child)
                else:
                    stack.pop().directory.release()
                    if stack:
                        stack[-1].directory.wake()
        finally:
            for number, left in enumerate(reversed(stack)):
                left.directory.release(resting=number > 0)

    def _next_directory(self, frame: _Frame) -> _Frame | None:
        """Plan entries up to the next directory that is to be entered; None where there is none any more."""
        directory = frame.directory
        for node, ids, below in frame.entries:
            if not node.is_directory:
                self._entry(directory, node, ids)
                continue
            self._workers.check()
            try:
                child = self._enter(directory, node, ids, on_the_way=below is not None)
            except OSError as error:
                self._fault(directory.path_of(node.name), error)
                continue
            if child is not None:
                self._result.directories += 1
                self._current = child.path
                return _Frame(child, self._entries(ChunkId(node.content), below))
        return None

    def _enter(self, parent: Directory, node: Node, ids: Ids, *, on_the_way: bool) -> Directory | None:
        """The directory of a node in the target, made where it is missing; None where it cannot be. Raises OSError."""
        name, dry = node.name, self._dry
        partial = on_the_way or (node.extra is not None and node.extra.partial)
        there = parent.stat(name) if parent.names is not None and name in parent.names else None
        if there is not None and not stat.S_ISDIR(there.st_mode):
            if partial:
                self._warn(parent.path_of(name), "A file or a link stands where the way to the entries below leads")
                return None
            if self._request.conflict is Conflict.SKIP:
                self._result.skipped += 1
                self._plan(parent, name, "skip")
                return None
            if self._request.conflict is Conflict.COPY:
                name, there = self._planner.directory_name(parent, name)
                self._result.renamed += there is None
            else:
                if not dry:
                    os.unlink(name, dir_fd=parent.fd)
                there = None
        if there is None:
            self._plan(parent, name, "create")
            if dry:
                return parent.make_up(name)
            if partial and self._attributes.uid != 0:
                ids = parent.natural  # who is not root cannot make the way belong to others, and need not
            return parent.make(name, node, ids)
        child = parent.enter(name, dry=dry)
        if self._replaces_attributes() and not partial and not dry:
            child.wish = (node, ids)
        return child

    def _plan(self, directory: Directory, name: bytes, action: str) -> None:
        """List what a dry run would do."""
        if self._dry:
            self._result.planned.append(Planned(directory.path_of(name), action))

    def _fault(self, path: bytes, error: BaseException) -> None:
        raise_if_fatal(error, os.fsdecode(self._target))
        self._warn(path, reason_of(error))

    # --- entries ---

    def _entry(self, directory: Directory, node: Node, ids: Ids) -> None:
        result = self._result
        try:
            job = self._planner.job(directory, node, ids)
        except OSError as error:
            self._fault(directory.path_of(node.name), error)
            return
        if isinstance(job, Blocked):
            if job.reason:
                self._warn(directory.path_of(node.name), job.reason)
            else:
                result.skipped += 1
                self._plan(directory, node.name, "skip")
        elif self._dry:
            self._count(job)
        elif job.action is Action.LEAVE and not job.compare:
            with self._workers.lock:
                result.unchanged += 1
                self._workers.done_bytes += node.size
        else:
            if job.name != node.name and job.action is not Action.LEAVE:
                result.renamed += 1
            self._feed.add(job)

    def _count(self, job: Job) -> None:
        """What a dry run does with an entry."""
        result, node = self._result, job.node
        if job.action in (Action.LEAVE, Action.KEEP):
            result.unchanged += 1
            action = "unchanged"
        else:
            if job.action is Action.LINK:
                action = "link"
            elif job.name != node.name:
                action = "copy"
            else:
                action = "create" if job.seen is None else "replace"
            result.renamed += job.name != node.name
            if node.is_file:
                result.files += 1
                result.size += node.size
            else:
                result.others += 1
        self._plan(job.directory, job.name, action)


def _processes(repository: Repository) -> list[WriterProcess]:
    """A process for each thread that writes, where the system and the vault let us have them."""
    processes: list[WriterProcess] = []
    if WriterProcess.suits(repository):
        try:
            while len(processes) < WRITERS:
                processes.append(WriterProcess(repository, processes))
        except OSError:
            pass  # the threads do without
    return processes


def _selection(items: list[bytes]) -> Selection:
    """The ways to all items; one inside another is part of it."""
    root: Selection = {}
    for item in items:
        *way, last = parts_of(item)
        names: Selection | None = root
        for part in way:
            if names is not None:
                names = names.setdefault(part, {})
        if names is not None:
            names[last] = None
    return root
