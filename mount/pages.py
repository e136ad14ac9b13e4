"""Directories as pages of decoded entries, of which a bounded number is kept."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

from cas.errors import TreeDamaged
from cas.ids import ChunkId
from cas.model import Node, Owner, Tree, TreePage
from cas.store import trees
from cas.store.reader import Reader

_KEPT_MOST: Final = 32 << 20  # bytes of decoded pages kept
_KEPT_LEAST: Final = 4 << 20
_DECODED: Final = 5  # bytes of memory that one byte of a page takes when it is decoded, about


class MustWait(Exception):
    """What was asked for is not at hand. Ask again with `wait`, in a thread that may wait."""


class Outline(NamedTuple):
    """Where the pages of a directory begin: their first names, the positions of these, and their trees."""

    names: list[bytes]
    starts: list[int]
    trees: list[ChunkId]
    total: int  # entries in all of them


class Pages:
    """Directories of one repository, by their trees. Thread safe."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._kept: OrderedDict[ChunkId, tuple[Tree, int]] = OrderedDict()  # with the bytes it takes
        self._kept_bytes = 0
        self._most = max(min(reader.cache_bytes // 2, _KEPT_MOST), _KEPT_LEAST)

    @property
    def size(self) -> int:
        """About how many bytes of memory the decoded pages take."""
        return self._kept_bytes

    def outline(self, tree: ChunkId, wait: bool) -> Outline:
        """How a directory is paged. Raises TreeDamaged, MustWait, and the errors of reading."""
        leaves: list[TreePage] = []
        single = self._collect(tree, leaves, wait)
        if single is not None:
            return Outline([b""], [0], [tree], len(single.nodes))
        starts = []
        count = 0
        for leaf in leaves:
            starts.append(count)
            count += leaf.count
        return Outline([leaf.first for leaf in leaves], starts, [leaf.tree for leaf in leaves], count)

    def _collect(self, tree: ChunkId, leaves: list[TreePage], wait: bool) -> Tree | None:
        """The directory's only page; or None, and `leaves` has the references to its pages."""
        top = self._load(tree, wait)
        if isinstance(top, Tree):
            return top
        pages = top
        while True:
            # Every page of a list is on the same level, so the first one tells whether there is another list below.
            if not pages or isinstance(self._load(pages[0].tree, wait), Tree):
                break
            below: list[TreePage] = []
            for page in pages:
                part = self._load(page.tree, wait)
                if isinstance(part, Tree):
                    raise TreeDamaged(page.tree, "its levels do not descend")
                below.extend(part)
            if len(below) <= len(pages):
                raise TreeDamaged(tree, "its levels do not descend")
            pages = below
        leaves.extend(pages)
        return None

    def _load(self, tree: ChunkId, wait: bool) -> Tree | list[TreePage]:
        with self._lock:
            kept = self._kept.get(tree)
            if kept is not None:
                self._kept.move_to_end(tree)
                return kept[0]
        data = self._reader.chunk(tree) if wait else self._peek(tree)
        loaded = trees.page(lambda _: data, tree)
        if isinstance(loaded, Tree):
            size = _DECODED * len(data)
            with self._lock:
                if tree not in self._kept:
                    self._kept[tree] = (loaded, size)
                    self._kept_bytes += size
                while self._kept_bytes > self._most and len(self._kept) > 1:
                    self._kept_bytes -= self._kept.popitem(last=False)[1][1]
        return loaded

    def _peek(self, chunk: ChunkId) -> memoryview:
        data = self._reader.peek(chunk)
        if data is None:
            raise MustWait
        return data

    def page(self, outline: Outline, position: int, wait: bool) -> tuple[int, Tree]:
        """The page that holds the entry at `position`, and the position of its first entry."""
        number = bisect_right(outline.starts, position) - 1
        start = outline.starts[number]
        end = outline.starts[number + 1] if number + 1 < len(outline.starts) else outline.total
        page = self._load(outline.trees[number], wait)
        if not isinstance(page, Tree) or len(page.nodes) != end - start:
            raise TreeDamaged(outline.trees[number], "it has not as many entries as recorded")
        return start, page

    def find(self, outline: Outline, name: bytes, wait: bool) -> tuple[int, Node, Owner] | None:
        """An entry by name with its position; of a large directory only one page is read."""
        number = bisect_right(outline.names, name) - 1
        if number < 0 or outline.total == 0:
            return None
        start, page = self.page(outline, outline.starts[number], wait)
        index = bisect_right(page.nodes, name, key=_name_of) - 1
        if index < 0:
            return None
        node = page.nodes[index]
        return (start + index, node, page.owners[node.owner]) if node.name == name else None


def _name_of(node: Node) -> bytes:
    return node.name
