"""Backup: from the source through the writer to a committed recovery point.

An entry is compared with the same path in the machine's last point by size, mtime, ctime and inode. What is equal is
not opened; a directory all of whose entries are equal is not even encoded: its tree id is used again.
"""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

import cas
from cas.errors import Damaged, SourceUnreadable
from cas.events import Listener, Progress, Stage, Warning, ignore
from cas.ids import ChunkId, PointId
from cas.model import KIND_OF_TYPE_BITS, Extra, Node, NodeKind, Owner, Point, PointStats
from cas.repository import Problems, Repository, new_id
from cas.source import posix
from cas.source.exclude import Excluder, is_cache_directory
from cas.store.reader import Reader
from cas.store.trees import write_tree
from cas.store.writer import Writer
from cas.tasks.requests import BackupRequest, BackupResult

# A change in the same tick of the file system's clock as our reading would not show in ctime: whatever changed so
# shortly before the last run began, or since, is read again. Linux stamps files with a clock of 1 to 10 ms.
_CLOCK_TICK_NS: Final = 20_000_000
_COMPLETE_NOTE: Final = "complete "
_TELL_EVERY: Final = 64  # entries between two progress events

Now = Callable[[], int]


@dataclass(slots=True)
class _Previous:
    """A directory as the last point has it: its tree id, owners and nodes by name."""

    tree: ChunkId
    owners: list[Owner]
    nodes: dict[bytes, Node]


@dataclass(slots=True)
class _Plan:
    """What to protect below a directory: everything (`whole`), or only the ways that lead to it."""

    whole: bool = False
    below: dict[bytes, _Plan] = field(default_factory=dict)


@dataclass(slots=True)
class _Counts:
    files: int = 0
    directories: int = 0
    others: int = 0
    size: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    read: int = 0
    opened: int = 0


class _Content(msgspec.Struct, frozen=True, gc=False):
    """What reading a file gave."""

    content: bytes
    depth: int
    size: int
    extra: Extra | None
    st: os.stat_result


def plan_paths(paths: list[bytes]) -> _Plan:
    """The ways to all paths; one inside another is part of it."""
    root = _Plan()
    for path in paths:
        plan = root
        for part in path.split(b"/"):
            if part:
                plan = plan.below.setdefault(part, _Plan())
        plan.whole = True
    return root


def normalise_paths(paths: list[bytes]) -> list[bytes]:
    """Absolute, sorted, without duplicates and without those inside others. Links on the way are resolved, at the end
    not.
    """
    found: set[bytes] = set()
    for path in paths:
        absolute = os.path.abspath(path)
        parent, name = os.path.split(absolute)
        found.add(os.path.join(os.path.realpath(parent), name) if name else absolute)
    kept: list[bytes] = []
    for path in sorted(found):
        if not any(path == above or above == b"/" or path.startswith(above + b"/") for above in kept):
            kept.append(path)
    return kept


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

    def warn(path: bytes, reason: str) -> None:
        warning = Warning(path, reason)
        warnings.append(warning)
        listen(warning)

    paths = normalise_paths(request.paths)
    for path in list(paths):
        try:
            os.lstat(path)
        except OSError as error:
            warn(path, _reason(error))
            paths.remove(path)
    if not paths:
        raise SourceUnreadable(
            f"None of the paths can be read: {', '.join(os.fsdecode(warning.path) for warning in warnings)}.",
            "Check their spelling and your rights.",
        )
    for problem in repository.refresh().errors:
        warn(b"", str(problem))
    parent = None if request.force_full else last_point(repository, request, paths, warn)

    if request.dry_run:
        run = _Run(repository, request, _DryWriter(), parent, started, warn, listen)
        run.tree(plan_paths(paths))
        return BackupResult(None, _stats(run, warnings, 0, 0), warnings)

    point = PointId(new_id())
    for problem in repository.begin_session(point, {"machine": request.machine.id, "started": started}):
        warn(b"", str(problem))
    with repository.writer() as writer:
        run = _Run(repository, request, writer, parent, started, warn, listen)
        listen(Stage("transferring"))
        root, root_node = run.tree(plan_paths(paths))
        counts = writer.finish()
    stats = _stats(run, warnings, counts.added, counts.added_plain)
    result = Point(
        id=point,
        machine_id=request.machine.id,
        machine=request.machine.name,
        started=started,
        finished=now(),
        paths=paths,
        root=root,
        root_node=root_node,
        mode="full" if parent is None else "incremental",
        parent=None if parent is None else parent.id,
        excludes=request.excludes,
        tags=request.tags,
        stats=PointStats(**stats),
        utc_offset=request.utc_offset,
        platform=platform.system().lower(),
        agent=cas.__version__,
    )
    repository.commit(result)
    repository.index.note(_COMPLETE_NOTE + point)
    listen(Stage("done"))
    return BackupResult(result, stats, warnings)


def last_point(
    repository: Repository, request: BackupRequest, paths: list[bytes], warn: Callable[[bytes, str], None]
) -> Point | None:
    """The machine's newest point of the same paths, or else its newest one: any point is good to compare with."""
    problems = Problems()
    own = [point for point in repository.points(problems) if point.machine_id == request.machine.id]
    for error in problems.errors:
        warn(b"", str(error))
    candidates = [point for point in own if point.paths == paths] or own
    return candidates[-1] if candidates else None


def _stats(run: _Run, warnings: list[Warning], added: int, added_plain: int) -> dict[str, int]:
    counts = {name: getattr(run.counts, name) for name in _Counts.__slots__}
    return {**counts, "warnings": len(warnings), "added": added, "added_plain": added_plain}


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


class _DryWriter(Writer):
    """Takes everything in and stores nothing."""

    def __init__(self) -> None:
        pass

    def chunk(self, data: object) -> ChunkId:
        return ChunkId(bytes(32))

    def meta(self, data: bytes) -> ChunkId:
        return ChunkId(bytes(32))


class _Run:
    """One walk over the source."""

    def __init__(
        self,
        repository: Repository,
        request: BackupRequest,
        writer: Writer,
        parent: Point | None,
        started: int,
        warn: Callable[[bytes, str], None],
        listen: Listener,
    ) -> None:
        self.counts = _Counts()
        self._writer = writer
        self._reader: Reader = repository.reader()
        self._parent = parent
        self._warn = warn
        self._listen = listen
        self._progress = Progress()
        self._owner_of = posix.Owners()
        self._excluded = Excluder(request.excludes) if request.excludes else None
        self._request = request
        self._dry = request.dry_run
        self._single_most = repository.parameters.single_most
        self._pseudo = posix.pseudo_devices()
        self._skip = _identities(request.skip)
        self._links: dict[tuple[int, int], tuple[_Content, int]] = {}  # (device, inode) -> content, names still to come
        self._told = 0
        self._safe_before = 0 if parent is None else parent.started - _CLOCK_TICK_NS
        # Chunks of the last point are known to be in the index unless the index was made anew since.
        self._trusted = parent is not None and bool(repository.index.notes(_COMPLETE_NOTE + parent.id))

    # --- directories ---

    def tree(self, plan: _Plan) -> tuple[ChunkId, Node]:
        """Walk everything planned; the root's tree and attributes."""
        directory = posix.open_directory(b"/", None)
        try:
            st = os.fstat(directory)
            previous = self._load(self._parent.root) if self._parent is not None else None
            tree = self._directory(directory, b"", plan, previous, st.st_dev)
            extra = self._directory_extra(directory, partial=not plan.whole)
        finally:
            os.close(directory)
        self._tell()
        return tree, self._node(b"", st, 0, NodeKind.DIRECTORY, tree, extra=extra)

    def _load(self, tree: bytes) -> _Previous | None:
        """A directory of the last point, its pages joined and their owners numbered together."""
        owners: list[Owner] = []
        nodes: dict[bytes, Node] = {}
        try:
            for page in self._reader.pages(ChunkId(tree)):
                if not owners:
                    owners = list(page.owners)
                    nodes = {node.name: node for node in page.nodes}
                    continue
                numbers = []
                for owner in page.owners:
                    if owner not in owners:
                        owners.append(owner)
                    numbers.append(owners.index(owner))
                for node in page.nodes:
                    number = numbers[node.owner]
                    nodes[node.name] = node if number == node.owner else msgspec.structs.replace(node, owner=number)
        except Damaged as error:
            self._warn(b"", f"A directory of the last point cannot be read, so its files are read again. {error}")
            return None
        return _Previous(ChunkId(tree), owners, nodes)

    def _directory(self, directory: int, path: bytes, plan: _Plan, previous: _Previous | None, device: int) -> ChunkId:
        """Walk one open directory; returns its tree."""
        listing = self._listing(directory, path, plan)
        owners = list(previous.owners) if previous is not None else []
        numbers = {(owner.uid, owner.gid): number for number, owner in reversed(list(enumerate(owners)))}
        before = previous.nodes if previous is not None else {}
        nodes: list[Node] = []
        same = previous is not None
        for name, st in listing:
            old = before.get(name)
            ids = (st.st_uid, st.st_gid)
            number = numbers.get(ids)
            if number is None:
                number = numbers[ids] = len(owners)
                owners.append(self._owner_of(*ids))
            below = plan.below.get(name)
            if stat.S_ISDIR(st.st_mode):
                node = self._subdirectory(directory, path, name, st, number, old, below, plan.whole, device)
            else:
                node = self._entry(directory, path, name, st, number, old)
            if node is None:
                same = same and old is None
                continue
            if node is not old:
                same = False
            nodes.append(node)
        if same and previous is not None and len(nodes) == len(before):
            return previous.tree
        return write_tree(self._writer.meta, owners, nodes)

    def _listing(self, directory: int, path: bytes, plan: _Plan) -> posix.Listing:
        if not plan.whole:
            listing = []
            for name in sorted(plan.below):
                try:
                    listing.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
                except OSError as error:
                    self._warn(path + b"/" + name, _reason(error))
            return listing
        try:
            listing, failed = posix.list_directory(directory)
        except OSError as error:
            self._warn(path or b"/", f"The directory cannot be listed: {_reason(error)}")
            return []
        for name, fault in failed:
            self._warn(path + b"/" + name, _reason(fault))
        if self._request.exclude_caches and any(name == b"CACHEDIR.TAG" for name, _ in listing):
            listing = self._without_cache(directory, listing)
        if self._excluded is not None:
            excluded, is_directory = self._excluded, stat.S_ISDIR
            listing = [
                entry for entry in listing if not excluded(path + b"/" + entry[0], is_directory(entry[1].st_mode))
            ]
        return listing

    def _without_cache(self, directory: int, listing: posix.Listing) -> posix.Listing:
        """Only the tag itself where it marks a cache."""
        try:
            tag = posix.open_file(b"CACHEDIR.TAG", directory)
        except OSError:
            return listing
        try:
            marked = is_cache_directory(os.read(tag, 64))
        except OSError:
            marked = False
        finally:
            os.close(tag)
        return [entry for entry in listing if entry[0] == b"CACHEDIR.TAG"] if marked else listing

    def _subdirectory(
        self,
        parent: int,
        parent_path: bytes,
        name: bytes,
        st: os.stat_result,
        owner: int,
        old: Node | None,
        below: _Plan | None,
        whole: bool,
        device: int,
    ) -> Node | None:
        if (st.st_dev, st.st_ino) in self._skip:
            return None
        path = parent_path + b"/" + name
        asked = below is not None and not whole  # this directory was named, or one below it
        plan = below if below is not None and asked else _Plan(whole=True)
        crossed = st.st_dev != device and not asked
        if crossed and (self._request.one_file_system or st.st_dev in self._pseudo):
            plan = _Plan()  # the mount point itself, and nothing in it
        try:
            directory = posix.open_directory(name, parent)
        except OSError as error:
            self._warn(path, f"The directory cannot be opened: {_reason(error)}")
            return None
        try:
            previous = self._load(old.content) if old is not None and old.kind == NodeKind.DIRECTORY else None
            tree = self._directory(directory, path, plan, previous, st.st_dev)
            self.counts.directories += 1
            partial = bool(plan.below) and not plan.whole
            if (
                old is not None
                and old.content == tree
                and self._same(old, st)
                and old.owner == owner
                and partial == (old.extra is not None and old.extra.partial)
            ):
                return old
            extra = self._directory_extra(directory, partial=partial)
        except OSError as error:
            self._warn(path, _reason(error))
            return None
        finally:
            os.close(directory)
        return self._node(name, st, owner, NodeKind.DIRECTORY, tree, extra=extra)

    @staticmethod
    def _directory_extra(directory: int, *, partial: bool) -> Extra | None:
        xattrs = posix.read_xattrs(directory)
        return Extra(xattrs=xattrs, partial=partial) if xattrs or partial else None

    # --- everything else ---

    @staticmethod
    def _same(old: Node, st: os.stat_result) -> bool:
        """Whether nothing touched the entry since: any change of content or attributes moves ctime."""
        return (
            old.ctime == st.st_ctime_ns
            and old.mtime == st.st_mtime_ns
            and old.inode == st.st_ino
            and old.mode == st.st_mode & 0o7777
        )

    def _entry(
        self, parent: int, path: bytes, name: bytes, st: os.stat_result, owner: int, old: Node | None
    ) -> Node | None:
        """Anything that is no directory: the node of the last point where nothing changed, else a new one, or None."""
        counts = self.counts
        kind = KIND_OF_TYPE_BITS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            self._warn(path + b"/" + name, "An entry of a kind that cannot be kept was left out")
            return None
        self._told += 1
        if self._told >= _TELL_EVERY:
            self._tell(path)
        unchanged = (
            old is not None
            and old.kind == kind
            and old.ctime < self._safe_before
            and self._same(old, st)
            and old.owner == owner
            and (kind != NodeKind.FILE or (old.size == st.st_size and (self._trusted or self._stored(old))))
        )
        if unchanged:
            node = old
        else:
            try:
                node = self._new_entry(parent, path, name, st, owner, kind)
            except FileNotFoundError:
                self._warn(path + b"/" + name, "It vanished before it could be read")
                return None
            except OSError as error:
                self._warn(path + b"/" + name, _reason(error))
                return None
        assert node is not None
        if kind == NodeKind.FILE:
            counts.files += 1
            counts.size += node.size
            if unchanged:
                counts.unchanged += 1
            elif old is None:
                counts.new += 1
            else:
                counts.changed += 1
        else:
            counts.others += 1
        return node

    def _stored(self, old: Node) -> bool:
        """Whether the index still knows what the node refers to: where data was lost, the source may still have it."""
        content = old.content
        step = 32 if len(content) == 32 and not old.depth else 40
        return all(self._writer.knows(ChunkId(content[at : at + 32])) for at in range(0, len(content), step))

    def _new_entry(self, parent: int, path: bytes, name: bytes, st: os.stat_result, owner: int, kind: NodeKind) -> Node:
        if kind != NodeKind.FILE:
            where = posix.path_below(parent, name)
            content = os.readlink(name, dir_fd=parent) if kind == NodeKind.SYMLINK else b""
            extra = posix.extra_of(st, posix.read_xattrs(where), None)
            return self._node(name, st, owner, kind, content, size=len(content), extra=extra)
        if st.st_nlink > 1:
            known = self._links.get((st.st_dev, st.st_ino))
            if known is not None:
                return self._linked(known, name, st, owner)
        read = self._read(parent, path, name, st)
        if st.st_nlink > 1:
            self._links[st.st_dev, st.st_ino] = (read, st.st_nlink - 1)
        return self._node(name, read.st, owner, kind, read.content, read.depth, read.size, read.extra)

    def _linked(self, known: tuple[_Content, int], name: bytes, st: os.stat_result, owner: int) -> Node:
        """Another name of a file that was read already."""
        read, left = known
        if left > 1:
            self._links[st.st_dev, st.st_ino] = (read, left - 1)
        else:
            del self._links[st.st_dev, st.st_ino]
        return self._node(name, read.st, owner, NodeKind.FILE, read.content, read.depth, read.size, read.extra)

    def _read(self, parent: int, path: bytes, name: bytes, st: os.stat_result) -> _Content:
        """Read a file; once more where it changes meanwhile. The attributes are those from before the reading, so that
        the
        next run sees that it changed."""
        if self._dry:
            return _Content(b"", 0, st.st_size, None, st)
        read, quiet = self._read_once(parent, name, st)
        if not quiet:
            read, quiet = self._read_once(parent, name, None)
        if quiet:
            return read
        self._warn(path + b"/" + name, "It changed while it was read; what was read is kept")
        return read

    def _read_once(self, parent: int, name: bytes, st: os.stat_result | None) -> tuple[_Content, bool]:
        """What one reading gave, and whether nothing changed since `st` (or since the opening, where None)."""
        file = posix.open_file(name, parent)
        try:
            self.counts.opened += 1
            if st is None:
                st = os.fstat(file)
            read, after = self._read_open(file, st)
        finally:
            os.close(file)
        return read, (
            after.st_mtime_ns == st.st_mtime_ns
            and after.st_ctime_ns == st.st_ctime_ns
            and after.st_size == st.st_size == read.size
            and after.st_ino == st.st_ino
        )

    def _read_open(self, file: int, st: os.stat_result) -> tuple[_Content, os.stat_result]:
        size = st.st_size
        xattrs = posix.read_xattrs(file)
        extents = posix.data_extents(file, st) if st.st_blocks * 512 < size else None
        writer = self._writer
        if size <= self._single_most and extents is None:
            data = os.read(file, self._single_most + 1)
            if len(data) <= self._single_most:
                content = writer.chunk(data) if data else b""
                self.counts.read += len(data)
                return _Content(content, 0, len(data), posix.extra_of(st, xattrs, None), st), os.fstat(file)
            os.lseek(file, 0, os.SEEK_SET)
        readinto = _plain_reader(file) if extents is None else posix.ExtentReader(file, extents)
        content, depth, total = writer.file(self._counted(readinto), size)
        kept = total if extents is None else size
        return _Content(content, depth, kept, posix.extra_of(st, xattrs, extents), st), os.fstat(file)

    def _counted(self, readinto: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
        def counted(view: memoryview) -> int:
            count = readinto(view)
            self.counts.read += count
            self._tell()
            return count

        return counted

    @staticmethod
    def _node(
        name: bytes,
        st: os.stat_result,
        owner: int,
        kind: NodeKind,
        content: bytes,
        depth: int = 0,
        size: int = 0,
        extra: Extra | None = None,
    ) -> Node:
        return Node(
            name,
            kind,
            st.st_mode & 0o7777,
            owner,
            size,
            st.st_mtime_ns,
            st.st_ctime_ns,
            st.st_ino,
            content,
            depth,
            extra,
        )

    def _tell(self, path: bytes = b"") -> None:
        self._told = 0
        progress, counts = self._progress, self.counts
        progress.files, progress.size, progress.read = counts.files, counts.size, counts.read
        progress.added = 0 if self._dry else self._writer.counts.added
        progress.current = path or progress.current
        self._listen(progress)


def _plain_reader(file: int) -> Callable[[memoryview], int]:
    return lambda view: os.readv(file, [view])


def _identities(paths: list[bytes]) -> set[tuple[int, int]]:
    """(device, inode) of those that exist."""

    def each() -> Iterator[tuple[int, int]]:
        for path in paths:
            try:
                st = os.stat(path)
            except OSError:
                continue
            yield st.st_dev, st.st_ino

    return set(each())
