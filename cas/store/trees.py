"""Trees as chunks: one directory's entries, in pages where they are many.

A tree chunk starts with one byte: 0, and a `Tree` follows; n > 0, and a list of `TreePage` follows whose trees have
level n-1. A page ends after a name whose CRC-32 is divisible, so that adding an entry to a directory of a million
rewrites one page and the lists above it, and everything else is shared.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from cas.errors import TreeDamaged
from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.model import Node, Owner, Tree, TreePage

PAGE_LEAST: Final = 64  # entries
PAGE_MOST: Final = 768
PAGE_BYTES: Final = 256 << 10  # a page ends when its entries take this much, whatever their number
_PAGE_MASK: Final = 127  # 1 in 128 names ends a page: a change costs a page, not the directory
_MOST_LEVELS: Final = 8

Store = Callable[[bytes], ChunkId]
Load = Callable[[ChunkId], "bytes | memoryview"]

_encoder: Final = msgspec.msgpack.Encoder()
_tree_decoder: Final = msgspec.msgpack.Decoder(Tree)
_pages_decoder: Final = msgspec.msgpack.Decoder(list[TreePage])


def _page_ends(names: Sequence[bytes], sizes: Sequence[int]) -> Iterator[int]:
    """Where to end the pages of a long sorted list of names: ends, exclusive, the last one included."""
    start = size = 0
    for position, name in enumerate(names):
        count = position + 1 - start
        size += sizes[position]
        full = count >= PAGE_MOST or size >= PAGE_BYTES
        if full or (count >= PAGE_LEAST and zlib.crc32(name) & _PAGE_MASK == 0):
            yield position + 1
            start = position + 1
            size = 0
    if start < len(names):
        yield len(names)


def _size(node: Node) -> int:
    """About how many bytes a node takes."""
    size = 64 + len(node.name) + len(node.content)
    if node.extra is not None:
        size += len(_encoder.encode(node.extra))
    return size


def _own_owners(owners: Sequence[Owner], nodes: Sequence[Node]) -> tuple[list[Owner], Sequence[Node]]:
    """Renumber, so that a page names only the owners that occur in it and depends on nothing outside it."""
    used: dict[int, int] = {}
    for node in nodes:
        used.setdefault(node.owner, len(used))
    if all(old == new for old, new in used.items()):
        return list(owners[: len(used)]), nodes
    renumbered = [
        node if used[node.owner] == node.owner else msgspec.structs.replace(node, owner=used[node.owner])
        for node in nodes
    ]
    return [owners[old] for old in used], renumbered


def write_tree(store: Store, owners: Sequence[Owner], nodes: Sequence[Node]) -> ChunkId:
    """Store a directory whose nodes are sorted by name; `owner` in them counts in `owners`. Returns the tree's id."""
    if len(nodes) <= PAGE_MOST:
        encoded = _encode_page(owners, nodes)
        if len(encoded) <= PAGE_BYTES:
            return store(encoded)
    pages: list[TreePage] = []
    start = 0
    for end in _page_ends([node.name for node in nodes], [_size(node) for node in nodes]):
        tree = store(_encode_page(owners, nodes[start:end]))
        pages.append(TreePage(nodes[start].name, end - start, tree))
        start = end
    level = 1
    while len(pages) > PAGE_MOST:
        upper: list[TreePage] = []
        start = 0
        for end in _page_ends([page.first for page in pages], [64 + len(page.first) for page in pages]):
            part = pages[start:end]
            tree = store(bytes([level]) + _encoder.encode(part))
            upper.append(TreePage(part[0].first, sum(page.count for page in part), tree))
            start = end
        pages = upper
        level += 1
    return store(bytes([level]) + _encoder.encode(pages))


def _encode_page(owners: Sequence[Owner], nodes: Sequence[Node]) -> bytes:
    return b"\0" + _encoder.encode(_own_owners(owners, nodes))


def _decode(tree: ChunkId, data: bytes | memoryview) -> Tree | list[TreePage]:
    if not len(data) or data[0] > _MOST_LEVELS:
        raise TreeDamaged(tree, "its level is out of range")
    try:
        if data[0]:
            return _pages_decoder.decode(memoryview(data)[1:])
        return _tree_decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TreeDamaged(tree, str(error)) from None


def page(load: Load, tree: ChunkId) -> Tree | list[TreePage]:
    """One chunk of a directory: a page of entries, or the list of the pages below. Raises TreeDamaged."""
    decoded = _decode(tree, load(tree))
    if isinstance(decoded, Tree):
        _check(tree, decoded)
    return decoded


def read(load: Load, tree: ChunkId) -> Tree | list[TreePage]:
    """One tree chunk: the entries, or the pages that hold them. For callers that look at each page of many versions of
    a directory once. Raises TreeDamaged."""
    decoded = _decode(tree, load(tree))
    if isinstance(decoded, Tree):
        _check(tree, decoded)
    return decoded


def pages(load: Load, tree: ChunkId) -> Iterator[Tree]:
    """The directory's pages in the order of their names; one page is in memory at a time. Raises TreeDamaged."""
    last = b""
    for page in _pages(load, tree, _MOST_LEVELS):
        if page.nodes:
            if page.nodes[0].name <= last:
                raise TreeDamaged(tree, "its pages are not in the order of their names")
            last = page.nodes[-1].name
        yield page


def _pages(load: Load, tree: ChunkId, level: int) -> Iterator[Tree]:
    data = load(tree)
    decoded = _decode(tree, data)
    if isinstance(decoded, Tree):
        _check(tree, decoded)
        yield decoded
        return
    if data[0] > level:
        raise TreeDamaged(tree, "its levels do not descend")
    for page in decoded:
        yield from _pages(load, page.tree, data[0] - 1)


def _check(tree: ChunkId, decoded: Tree) -> None:
    """What types cannot say: owners in range, names that a file system would accept, strictly ascending."""
    owners = len(decoded.owners)
    last = b""
    for node in decoded.nodes:
        name = node.name
        if name <= last or b"/" in name or b"\0" in name or name == b"." or name == b"..":
            raise TreeDamaged(tree, f"the name {name!r} cannot stand in a directory")
        if not 0 <= node.owner < owners or not 0 <= node.kind <= 6:
            raise TreeDamaged(tree, f"the entry {name!r} is not consistent")
        if node.kind == 1 and len(node.content) != CHUNK_ID_BYTES:
            raise TreeDamaged(tree, f"the directory {name!r} has no tree")
        last = name


def lookup(load: Load, tree: ChunkId, name: bytes) -> tuple[Node, Owner] | None:
    """One entry by name; of a large directory only the pages on the way are read. Raises TreeDamaged."""
    for _ in range(_MOST_LEVELS + 1):
        decoded = _decode(tree, load(tree))
        if isinstance(decoded, Tree):
            _check(tree, decoded)
            position = bisect_right(decoded.nodes, name, key=lambda node: node.name) - 1
            if position < 0 or decoded.nodes[position].name != name:
                return None
            node = decoded.nodes[position]
            return node, decoded.owners[node.owner]
        position = bisect_right(decoded, name, key=lambda page: page.first) - 1
        if position < 0:
            return None
        tree = decoded[position].tree
    raise TreeDamaged(tree, "its levels do not descend")
