"""What points reach: every tree, content list and chunk, each distinct one once; and, where something is damaged,
which files of which points it takes with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from cas.errors import Damaged, FormatTooNew, ObjectMissing, TreeDamaged, VaultUnavailable
from cas.ids import CHUNK_ID_BYTES, ChunkId, PackId, PointId
from cas.model import Node, NodeKind, Tree
from cas.repository import Repository
from cas.store import trees
from cas.store.content import ENTRY
from cas.store.formats import PackKind
from cas.store.index import Index
from cas.store.layout import VAULT_HEADER
from cas.store.reader import Reader
from cas.tasks.findings import DAMAGED_PACK, CheckReport, Faults, Problem, reason_of

_CACHE_BYTES: Final = 128 << 20
_BATCH: Final = 16384  # chunks looked up together
_MOST_DEPTH: Final = 16  # of content lists

Stray = tuple[PackKind, PackId, int]
"""A pack in the vault that no index segment names: kind, id, bytes."""


class Chunks:
    """Where chunks are: in the index, or, where an index segment was lost, in packs that no segment names.

    Those are looked into only when a chunk is missing, and held in an index of their own that goes with this object.
    """

    def __init__(self, repository: Repository, report: CheckReport, faults: Faults, strays: list[Stray]) -> None:
        self.faults = faults
        self.needed_strays: set[PackId] = set()
        self.unnamed: Problem | None = None  # of chunks that only those have: they can be read here, and nowhere else
        self._repository = repository
        self._report = report
        self._reader = repository.reader(_CACHE_BYTES, follow=False)
        self._strays = strays
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._stray_index: Index | None = None
        self._stray_reader: Reader | None = None
        self._missing: Problem | None = None
        self._missing_count = 0
        self._packs: dict[int, Problem] = {}

    def __enter__(self) -> Chunks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stray_index is not None:
            self._stray_index.close()
        if self._directory is not None:
            self._directory.cleanup()

    def load(self, chunk: ChunkId) -> memoryview:
        """The bytes of a piece of metadata. Raises Damaged, with the fault noted, and the vault's errors."""
        location = self._reader.find_many([chunk])[0]
        reader = self._reader
        if location is None:
            stray = self._find_stray(chunk)
            if stray is None:
                raise self._lost(chunk)
            reader = stray
        try:
            return reader.chunk(chunk)
        except (Damaged, FormatTooNew, VaultUnavailable) as error:
            if isinstance(error, VaultUnavailable):
                self._repository.vault.size(VAULT_HEADER)  # where the whole vault is out of reach, that is to be said
            if location is None:
                self._blame_missing(chunk)
            elif location.pack not in self.faults.packs and (location.pack, location.block) not in self.faults.blocks:
                problem = self.pack_problem(location.pack, f"block {location.block}: {reason_of(error)}")
                self.faults.blocks[location.pack, location.block] = problem
            raise TreeDamaged(chunk, reason_of(error)) from None

    def pack_problem(self, number: int, reason: str) -> Problem:
        """The one problem of a pack, by its number in the index; `reason` is added to it."""
        info = self._repository.index.pack(number)
        problem = self._packs.get(number)
        if problem is None:
            name = self._repository.layout.pack(info.kind, info.id)
            problem = self._packs[number] = self._report.add("pack", name, reason, DAMAGED_PACK)
        elif reason not in problem.reason:
            problem.reason += f"; {reason}"
        return problem

    def verify(self, ids: list[ChunkId], lengths: list[int]) -> None:
        """Note every chunk that is nowhere, or whose length is not the recorded one."""
        for chunk, length, location in zip(ids, lengths, self._reader.find_many(ids), strict=True):
            if location is None:
                if chunk not in self.faults.chunks and self._find_stray(chunk) is None:
                    self._blame_missing(chunk)
            elif location.length != length and chunk not in self.faults.chunks:
                self.faults.chunks[chunk] = self._report.add(
                    "chunk",
                    chunk.hex()[:16],
                    f"it has {location.length} bytes, and a file that consists of it names {length}",
                )

    def blame(self, ids: list[ChunkId]) -> list[Problem | None]:
        """For each chunk, the problem that makes it unreadable, or None."""
        faults = self.faults
        found: list[Problem | None] = []
        for chunk, location in zip(ids, self._reader.find_many(ids), strict=True):
            problem = faults.chunks.get(chunk)
            if problem is None and location is not None:
                problem = faults.packs.get(location.pack) or faults.blocks.get((location.pack, location.block))
            elif problem is None and self._find_stray(chunk) is not None:
                problem = self.unnamed
            found.append(problem)
        return found

    # --- what is not in the index ---

    def _find_stray(self, chunk: ChunkId) -> Reader | None:
        """A reader that has the chunk from a pack that no segment names."""
        if not self._strays:
            return None
        if self._stray_index is None or self._stray_reader is None:
            self._stray_index = self._open_strays()
            repository = self._repository
            self._stray_reader = Reader(repository.vault, repository.layout, repository.keys, self._stray_index)
        location = self._stray_index.find(chunk)
        if location is None:
            return None
        self.needed_strays.add(self._stray_index.pack(location.pack).id)
        if self.unnamed is None:
            self.unnamed = self._report.add(
                "index",
                self._repository.layout.index,
                "packs that points need are named by no index segment that can be read",
                "Nothing is lost: run 'backdrive cache rebuild', which names them again.",
            )
        return self._stray_reader

    def _open_strays(self) -> Index:
        self._directory = tempfile.TemporaryDirectory(prefix="backdrive-check-")
        index = Index(Path(self._directory.name))
        for kind, pack, size in self._strays:
            name = self._repository.layout.pack(kind, pack)
            try:
                index.load(name, [self._repository.read_record(pack, name, size)])
            except (Damaged, FormatTooNew, ObjectMissing) as error:
                self._report.add("pack", name, f"no index segment names it, and it does not open: {reason_of(error)}")
        return index

    def _lost(self, chunk: ChunkId) -> TreeDamaged:
        if chunk not in self.faults.chunks:
            self._blame_missing(chunk)
        return TreeDamaged(chunk, "it is in no pack that the index knows")

    def _blame_missing(self, chunk: ChunkId) -> None:
        self._missing_count += 1
        if self._missing is None:
            self._missing = self._report.add("chunk", chunk.hex()[:16], "", "Run 'backdrive cache rebuild'.")
        more = self._missing_count - 1
        others = f" and {more} other{'s' * (more != 1)}" if more else ""
        self._missing.reason = (
            f"this chunk{others} cannot be found: no index segment names them"
            if more
            else ("it cannot be found: no index segment names it")
        )
        self.faults.chunks[chunk] = self._missing


class Walk:
    """Looks at all that points refer to. A tree, a page or a content list that was seen is not looked at again."""

    def __init__(self, chunks: Chunks, report: CheckReport, tell: Callable[[], None]) -> None:
        self._chunks = chunks
        self._report = report
        self._tell = tell
        self._seen: set[ChunkId] = set()
        self._lists: dict[ChunkId, int] = {}  # bytes that each content list covers
        self._ids: list[ChunkId] = []
        self._lengths: list[int] = []

    def point(self, root: ChunkId) -> None:
        """Everything below the tree `root`."""
        stack = [root]
        seen, faults = self._seen, self._chunks.faults
        while stack:
            tree = stack.pop()
            if tree in seen:
                continue
            seen.add(tree)
            self._report.trees += 1
            try:
                decoded = trees.read(self._chunks.load, tree)
            except Damaged as error:
                if self._chunks.blame([tree]) == [None]:
                    faults.trees[tree] = self._report.add("tree", tree.hex()[:16], reason_of(error))
                continue
            if isinstance(decoded, Tree):
                self._nodes(tree, decoded)
                stack.extend([ChunkId(node.content) for node in decoded.nodes if node.kind == NodeKind.DIRECTORY])
            else:
                stack.extend([page.tree for page in decoded])
            if len(self._ids) >= _BATCH:
                self.flush()

    def flush(self) -> None:
        """Look up what was collected. Call at the end."""
        self._chunks.verify(self._ids, self._lengths)
        self._ids.clear()
        self._lengths.clear()
        self._tell()

    def _nodes(self, tree: ChunkId, page: Tree) -> None:
        ids, lengths = self._ids, self._lengths
        files = 0
        for node in page.nodes:
            if node.kind != NodeKind.FILE:
                continue
            files += 1
            if node.extra is None and node.depth == 0 and len(node.content) == CHUNK_ID_BYTES:
                ids.append(ChunkId(node.content))
                lengths.append(node.size)
                continue
            try:
                for size, content, depth in contents(node):
                    self._content(size, content, depth)
            except TreeDamaged as error:
                if tree not in self._chunks.faults.trees:
                    self._chunks.faults.trees[tree] = self._report.add(
                        "tree", tree.hex()[:16], f"the file {node.name!r} in it: {reason_of(error)}"
                    )
        self._report.files += files

    def _content(self, size: int, content: bytes, depth: int) -> None:
        if depth == 0 and len(content) == CHUNK_ID_BYTES:
            self._ids.append(ChunkId(content))
            self._lengths.append(size)
        elif self._listed(content, depth, content[:CHUNK_ID_BYTES]) != size:
            raise TreeDamaged(content[:CHUNK_ID_BYTES], "its content does not add up to its size")

    def _listed(self, content: bytes | memoryview, depth: int, where: bytes) -> int:
        """The bytes that a content list covers, with all below it looked at. Raises TreeDamaged."""
        if len(content) % ENTRY.size or not 0 <= depth <= _MOST_DEPTH:
            raise TreeDamaged(where, "a content list does not parse")
        total = 0
        for chunk, length in ENTRY.iter_unpack(content):
            total += length
            if depth == 0:
                self._ids.append(ChunkId(chunk))
                self._lengths.append(length)
                continue
            covered = self._lists.get(ChunkId(chunk))
            if covered is None:
                try:
                    below = self._chunks.load(ChunkId(chunk))
                except Damaged:
                    continue  # noted, and blamed on the pack or the chunk
                covered = self._lists[ChunkId(chunk)] = self._listed(below, depth - 1, chunk)
            if covered != length:
                raise TreeDamaged(chunk, "a content list covers another length than recorded")
        return total


def contents(node: Node) -> Iterator[tuple[int, bytes, int]]:
    """(bytes of data, content, depth) of a file and of its streams. Raises TreeDamaged where its extents cannot be."""
    extra = node.extra
    size = node.size
    if extra is not None and extra.extents is not None:
        size = end = 0
        for offset, length in extra.extents:
            if offset < end or length < 0 or offset + length > node.size:
                raise TreeDamaged(node.content[:CHUNK_ID_BYTES], "the extents of a sparse file are not in order")
            end = offset + length
            size += length
    yield size, node.content, node.depth
    if extra is not None and extra.windows is not None:
        for stream in extra.windows.streams:
            yield stream.size, stream.content, stream.depth


class Blame:
    """Finds the files that faults touch: first which trees have any below them, then the paths in each point."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._dirty: dict[ChunkId, bool] = {}

    def point(self, point: PointId, root: ChunkId) -> None:
        """Let every problem know what it touches in this point."""
        self._find_dirty(root)
        stack = [(root, b"")]
        while stack:
            tree, path = stack.pop()
            if not self._dirty[tree]:
                continue
            lost = self._lost(tree)
            if lost is not None:
                lost.touch(point, path + b"/")
                if lost is not self._chunks.unnamed:
                    continue
            try:
                decoded = trees.read(self._chunks.load, tree)
            except Damaged:  # since it was walked
                continue
            if not isinstance(decoded, Tree):
                stack.extend([(page.tree, path) for page in decoded])
                continue
            for node in decoded.nodes:
                if node.kind == NodeKind.DIRECTORY:
                    stack.append((ChunkId(node.content), path + b"/" + node.name))
            for node, problems in self._touched(decoded):
                for problem in problems:
                    problem.touch(point, path + b"/" + node.name)

    def _lost(self, tree: ChunkId) -> Problem | None:
        return self._chunks.faults.trees.get(tree) or self._chunks.blame([tree])[0]

    def _find_dirty(self, root: ChunkId) -> None:
        """Tell for `root` and every tree below it whether something in it, or below it, is touched."""
        dirty = self._dirty
        stack: list[tuple[ChunkId, list[ChunkId] | None]] = [(root, None)]
        while stack:
            tree, below = stack.pop()
            if below is not None:
                dirty[tree] = dirty[tree] or any(dirty[child] for child in below)
                continue
            if tree in dirty:
                continue
            lost = self._lost(tree)
            if lost is not None and lost is not self._chunks.unnamed:
                dirty[tree] = True
                continue
            try:
                decoded = trees.read(self._chunks.load, tree)
            except Damaged:  # since it was walked
                dirty[tree] = True
                continue
            if isinstance(decoded, Tree):
                dirty[tree] = lost is not None or next(iter(self._touched(decoded)), None) is not None
                children = [ChunkId(node.content) for node in decoded.nodes if node.kind == NodeKind.DIRECTORY]
            else:
                dirty[tree] = lost is not None
                children = [page.tree for page in decoded]
            stack.append((tree, children))
            stack.extend([(child, None) for child in children])

    def _touched(self, page: Tree) -> Iterable[tuple[Node, set[Problem]]]:
        """The files of a page that cannot be read whole, with the problems that make it so."""
        ids: list[ChunkId] = []
        owners: list[int] = []
        touched: dict[int, set[Problem]] = {}
        for number, node in enumerate(page.nodes):
            if node.kind == NodeKind.FILE:
                for _, content, depth in contents(node):
                    for chunk in self._chunks_of(content, depth):
                        ids.append(chunk)
                        owners.append(number)
        for number, problem in zip(owners, self._chunks.blame(ids), strict=True):
            if problem is not None:
                touched.setdefault(number, set()).add(problem)
        return [(page.nodes[number], problems) for number, problems in touched.items()]

    def _chunks_of(self, content: bytes | memoryview, depth: int) -> Iterator[ChunkId]:
        """The chunks of a content reference; of a list that is lost, only the list."""
        if depth == 0 and len(content) == CHUNK_ID_BYTES:
            yield ChunkId(bytes(content))
            return
        for chunk, _ in ENTRY.iter_unpack(content):
            yield ChunkId(chunk)
            if depth and self._chunks.blame([ChunkId(chunk)]) == [None]:
                yield from self._chunks_of(self._chunks.load(ChunkId(chunk)), depth - 1)
