"""Directories as chunks: pages, sharing between versions, and trees that no honest writer made."""

from __future__ import annotations

import random
from hashlib import sha256

import msgspec
import pytest

from cas.errors import TreeDamaged
from cas.ids import ChunkId
from cas.model import Extra, Node, NodeKind, Owner, Tree, TreePage
from cas.store import trees

OWNERS = [Owner(0, 0, b"root", b"root"), Owner(1000, 100, b"eva", b"users")]


class Shelf:
    """Keeps chunks and counts what is asked for."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}
        self.loaded = 0

    def store(self, data: bytes) -> ChunkId:
        chunk = ChunkId(sha256(data).digest())
        self.chunks[chunk] = data
        return chunk

    def load(self, chunk: ChunkId) -> bytes:
        self.loaded += 1
        return self.chunks[chunk]


def node(name: bytes, owner: int = 0, **more: object) -> Node:
    fields: dict[str, object] = {
        "kind": NodeKind.FILE,
        "mode": 0o644,
        "owner": owner,
        "size": 0,
        "mtime": 1,
        "ctime": 2,
    }
    return Node(name=name, **{**fields, "inode": 3, "content": b"", **more})  # type: ignore[arg-type]


def names(count: int) -> list[bytes]:
    rng = random.Random(count)
    return sorted({b"%s-%d" % (rng.randbytes(4).hex().encode(), i) for i in range(count)})


def read_all(shelf: Shelf, tree: ChunkId) -> list[tuple[Node, Owner]]:
    return [(entry, page.owners[entry.owner]) for page in trees.pages(shelf.load, tree) for entry in page.nodes]


@pytest.mark.parametrize("count", [0, 1, 500, 10_000, 100_000])
def test_what_is_written_is_read(count: int) -> None:
    shelf = Shelf()
    nodes = [node(name, owner=position % 2) for position, name in enumerate(names(count))]
    tree = trees.write_tree(shelf.store, OWNERS, nodes)
    found = read_all(shelf, tree)
    assert [entry.name for entry, _ in found] == [entry.name for entry in nodes]
    assert all(owner == OWNERS[entry.inode * 0 + position % 2] for position, (entry, owner) in enumerate(found))
    assert (len(shelf.chunks) == 1) == (count <= trees.PAGE_MOST)
    assert all(len(data) < 2 * trees.PAGE_BYTES for data in shelf.chunks.values())


def test_looking_up_reads_only_the_pages_on_the_way() -> None:
    shelf = Shelf()
    everything = names(100_000)
    tree = trees.write_tree(shelf.store, OWNERS, [node(name, owner=1, size=len(name)) for name in everything])
    for name in random.Random(1).sample(everything, 50):
        shelf.loaded = 0
        found = trees.lookup(shelf.load, tree, name)
        assert found is not None
        assert (found[0].name, found[0].size, found[1]) == (name, len(name), OWNERS[1])
        assert shelf.loaded <= 3
        assert trees.lookup(shelf.load, tree, name + b"!") is None
    assert trees.lookup(shelf.load, tree, b"") is None
    assert trees.lookup(shelf.load, tree, b"\xff") is None


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_neighbouring_versions_share_their_pages(count: int) -> None:
    shelf = Shelf()
    nodes = [node(name) for name in names(count)]
    trees.write_tree(shelf.store, OWNERS, nodes)
    rng = random.Random(2)
    for _ in range(10):
        before = set(shelf.chunks)
        changed = list(nodes)
        at = rng.randrange(len(nodes))
        action = rng.choice(["add", "remove", "change"])
        if action == "add":
            changed.insert(at, node(nodes[at].name[:-1] + b"\x01"))
            changed.sort(key=lambda entry: entry.name)
        elif action == "remove":
            del changed[at]
        else:
            changed[at] = node(nodes[at].name, size=7)
        trees.write_tree(shelf.store, OWNERS, changed)
        new = [shelf.chunks[chunk] for chunk in set(shelf.chunks) - before]
        assert len(new) <= 6
        assert sum(map(len, new)) < 300_000


def test_a_page_does_not_depend_on_owners_elsewhere() -> None:
    shelf = Shelf()
    nodes = [node(name, owner=1) for name in names(100)]
    one = trees.write_tree(shelf.store, OWNERS, nodes)
    other = trees.write_tree(shelf.store, [OWNERS[1]], [node(entry.name) for entry in nodes])
    assert one == other


def test_large_entries_end_pages_too() -> None:
    shelf = Shelf()
    nodes = [node(name, extra=Extra(xattrs={b"user.x": bytes(30_000)})) for name in names(60)]
    tree = trees.write_tree(shelf.store, OWNERS, nodes)
    assert [entry for entry, _ in read_all(shelf, tree)] == nodes
    assert len(shelf.chunks) > 2


def encoded(nodes: list[Node], owners: list[Owner] = OWNERS) -> bytes:
    return b"\0" + msgspec.msgpack.encode(Tree(owners, nodes))


HOSTILE = {
    "empty": b"",
    "no tree": b"\0garbage",
    "level out of range": b"\xff" + msgspec.msgpack.encode([]),
    "unsorted": encoded([node(b"b"), node(b"a")]),
    "twice": encoded([node(b"a"), node(b"a")]),
    "no name": encoded([node(b"")]),
    "dot": encoded([node(b".")]),
    "dot dot": encoded([node(b"..")]),
    "slash": encoded([node(b"a/b")]),
    "absolute": encoded([node(b"/etc")]),
    "NUL": encoded([node(b"a\0b")]),
    "owner": encoded([node(b"a", owner=2)]),
    "negative owner": encoded([node(b"a", owner=-1)]),
    "kind": encoded([node(b"a", kind=7)]),
    "directory without tree": encoded([node(b"a", kind=NodeKind.DIRECTORY, content=b"short")]),
    "text for bytes": b"\0" + msgspec.msgpack.encode([[], [["name"]]]),
    "deep nesting": b"\0" + b"\x91" * 100_000,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_trees_are_refused(what: str) -> None:
    shelf = Shelf()
    tree = shelf.store(HOSTILE[what])
    for call in (
        lambda: list(trees.pages(shelf.load, tree)),
        lambda: trees.lookup(shelf.load, tree, b"a"),
        lambda: trees.read(shelf.load, tree),
    ):
        with pytest.raises(TreeDamaged):
            call()


def test_pages_that_do_not_descend_are_refused() -> None:
    chunk = ChunkId(bytes(32))
    circle = bytes([1]) + msgspec.msgpack.encode([TreePage(b"", 1, chunk)])
    with pytest.raises(TreeDamaged):
        list(trees.pages(lambda _: circle, chunk))
    with pytest.raises(TreeDamaged):
        trees.lookup(lambda _: circle, chunk, b"a")


def test_pages_out_of_order_are_refused() -> None:
    """Each page is sorted, and together they are not: a directory would show a name twice."""
    shelf = Shelf()
    page = TreePage(b"a", 1, shelf.store(encoded([node(b"a")])))
    tree = shelf.store(bytes([1]) + msgspec.msgpack.encode([page, page]))
    with pytest.raises(TreeDamaged):
        list(trees.pages(shelf.load, tree))
