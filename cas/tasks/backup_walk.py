"""The part of a backup that walks: directories of the source beside those of the last point.

An entry is compared with the same path in the last point by size, mtime, ctime and inode. What is equal is not opened;
a directory all of whose entries are equal is not even encoded: its tree id is used again.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from cas.errors import Damaged
from cas.ids import ChunkId
from cas.model import KIND_OF_TYPE_BITS, Extra, Node, NodeKind, Owner
from cas.source import posix
from cas.source.exclude import Excluder, is_cache_directory
from cas.source.plan import EVERYTHING, NOTHING, Plan, identities
from cas.store.reader import Reader
from cas.store.trees import write_tree
from cas.tasks.backup_files import Counts, EntryReader, Sink, Warn, make_node, reason
from cas.tasks.requests import BackupRequest

_SECOND_NS: Final = 1_000_000_000
_COARSE_TICK_NS: Final = 2 * _SECOND_NS  # of file systems whose times are whole seconds, such as FAT and old ext
_TELL_EVERY: Final = 64  # entries between two progress events
_FRAMES_FOR_DEPTH: Final = 20_000  # of Python's stack, two a level of directories


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare with: the root of the last point."""

    root: ChunkId
    safe_before: int  # ns: an entry whose ctime is later may have changed without showing it
    trusted: bool  # the index is known to hold all its chunks


@dataclass(slots=True)
class _Previous:
    """A directory as the last point has it: its tree id, owners and nodes by name."""

    tree: ChunkId
    owners: list[Owner]
    nodes: dict[bytes, Node]


class Walk:
    """One walk over the source."""

    def __init__(
        self,
        request: BackupRequest,
        sink: Sink,
        reader: Reader,
        previous: Comparison | None,
        single_most: int,
        warn: Warn,
        tell: Callable[[Counts, bytes], None],
    ) -> None:
        """`reader` reads the last point; `tell` hears of progress: the counts, and the directory at work."""
        self.counts = Counts()
        self._request = request
        self._sink = sink
        self._reader = reader
        self._previous = previous
        self._warn = warn
        self._tell = tell
        self._told = 0
        self._path = b""
        self._files = EntryReader(sink, self.counts, single_most, warn, self._progress, dry=request.dry_run)
        self._owner_of = posix.Owners()
        self._excluded = Excluder(request.excludes) if request.excludes else None
        self._pseudo = posix.pseudo_devices()
        self._skip = identities(request.skip)
        self._safe_before = 0 if previous is None else previous.safe_before
        self._trusted = previous is not None and previous.trusted

    def tree(self, plan: Plan) -> tuple[ChunkId, Node, Owner]:
        """Walk everything planned; the root's tree, attributes and owner. Raises what the sink raises."""
        posix.allow_many_open_files()
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _FRAMES_FOR_DEPTH))
        directory = posix.open_directory(b"/", None)
        try:
            st = os.fstat(directory)
            previous = self._load(self._previous.root) if self._previous is not None else None
            tree = self._directory(directory, b"", plan, previous, st.st_dev)
            extra = self._directory_extra(directory, plan)
        finally:
            os.close(directory)
            sys.setrecursionlimit(limit)
        self._progress()
        owner = self._owner_of(st.st_uid, st.st_gid)
        return tree, make_node(b"", st, 0, NodeKind.DIRECTORY, tree, extra=extra), owner

    def _progress(self) -> None:
        self._told = 0
        self._tell(self.counts, self._path)

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

    def _directory(self, directory: int, path: bytes, plan: Plan, previous: _Previous | None, device: int) -> ChunkId:
        """Walk one open directory; returns its tree."""
        owners = list(previous.owners) if previous is not None else []
        numbers = {(owner.uid, owner.gid): number for number, owner in reversed(list(enumerate(owners)))}
        before = previous.nodes if previous is not None else {}
        nodes: list[Node] = []
        same = previous is not None
        for name, st in self._listing(directory, path, plan):
            old = before.get(name)
            ids = (st.st_uid, st.st_gid)
            number = numbers.get(ids)
            if number is None:
                number = numbers[ids] = len(owners)
                owners.append(self._owner_of(*ids))
            if stat.S_ISDIR(st.st_mode):
                node = self._subdirectory(directory, path, name, st, number, old, self._below(plan, name, st, device))
            else:
                node = self._entry(directory, path, name, st, number, old)
            if node is not old:
                same = False
            if node is not None:
                nodes.append(node)
        if same and previous is not None and len(nodes) == len(before):
            return previous.tree
        return write_tree(self._sink.meta, owners, nodes)

    def _below(self, plan: Plan, name: bytes, st: os.stat_result, device: int) -> Plan:
        """What to protect in a subdirectory. What was named is entered wherever it lies."""
        named = None if plan.whole else plan.below.get(name)
        if named is not None:
            return named
        if st.st_dev != device and (self._request.one_file_system or st.st_dev in self._pseudo):
            return NOTHING  # the mount point itself, and nothing in it
        return EVERYTHING

    def _listing(self, directory: int, path: bytes, plan: Plan) -> posix.Listing:
        if not plan.whole:
            listing = []
            for name in sorted(plan.below):
                try:
                    listing.append((name, os.stat(name, dir_fd=directory, follow_symlinks=False)))
                except OSError as error:
                    self._warn(path + b"/" + name, reason(error))
            return listing
        try:
            listing, failed = posix.list_directory(directory)
        except OSError as error:
            self._warn(path or b"/", f"The directory cannot be listed: {reason(error)}")
            return []
        for name, fault in failed:
            self._warn(path + b"/" + name, reason(fault))
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
        self, parent: int, above: bytes, name: bytes, st: os.stat_result, owner: int, old: Node | None, plan: Plan
    ) -> Node | None:
        if (st.st_dev, st.st_ino) in self._skip:
            return None
        path = above + b"/" + name
        try:
            directory = posix.open_directory(name, parent)
        except OSError as error:
            self._warn(path, f"The directory cannot be opened: {reason(error)}")
            return None
        self._path = path
        try:
            previous = self._load(old.content) if old is not None and old.kind == NodeKind.DIRECTORY else None
            tree = self._directory(directory, path, plan, previous, st.st_dev)
            self.counts.directories += 1
            if (
                old is not None
                and old.content == tree
                and self._settled(old)
                and self._same(old, st)
                and old.owner == owner
                and plan.partial == (old.extra is not None and old.extra.partial)
            ):
                return old
            extra = self._directory_extra(directory, plan)
        except OSError as error:
            self._warn(path, reason(error))
            return None
        except RecursionError:
            self._warn(path, "Directories are nested too deeply below it")
            return None
        finally:
            os.close(directory)
        return make_node(name, st, owner, NodeKind.DIRECTORY, tree, extra=extra)

    @staticmethod
    def _directory_extra(directory: int, plan: Plan) -> Extra | None:
        xattrs = posix.read_xattrs(directory)
        return Extra(xattrs=xattrs, partial=plan.partial) if xattrs or plan.partial else None

    def _settled(self, old: Node) -> bool:
        """Whether a change since the last run would show in ctime: it is older than that run by a tick of the clock."""
        ctime = old.ctime
        return ctime < self._safe_before - (0 if ctime % _SECOND_NS else _COARSE_TICK_NS)

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
        kind = KIND_OF_TYPE_BITS.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            self._warn(path + b"/" + name, "An entry of a kind that cannot be kept was left out")
            return None
        self._told += 1
        if self._told >= _TELL_EVERY:
            self._progress()
        unchanged = (
            old is not None
            and old.kind == kind
            and self._settled(old)
            and self._same(old, st)
            and old.owner == owner
            and (old.extra is None or old.extra.link is None or old.extra.link.device == st.st_dev)
            and (kind != NodeKind.FILE or (old.size == st.st_size and (self._trusted or self._stored(old))))
        )
        node = old if unchanged else self._files.read(parent, path, name, st, owner, kind)
        if node is None:
            return None
        counts = self.counts
        if kind != NodeKind.FILE:
            counts.others += 1
            return node
        counts.files += 1
        counts.size += node.size
        if unchanged:
            counts.unchanged += 1
        elif old is None:
            counts.new += 1
        else:
            counts.changed += 1
        return node

    def _stored(self, old: Node) -> bool:
        """Whether the index still knows what the node refers to: where data was lost, the source may still have it."""
        try:
            chunks = [piece.chunk for piece in self._reader.content(old).pieces()]
        except Damaged:  # a content list is lost
            return False
        return all(location is not None for location in self._reader.find_many(chunks))
