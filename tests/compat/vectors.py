"""Makes and checks the test vectors in `fixtures/vectors`: `python -m tests.compat.vectors` prints what the code gives
today.

A vector that changes means that the format changed: that needs a new format version, not a new vector.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from blake3 import blake3

from cas.ids import ChunkId
from cas.model import Extra, HardLink, Node, Owner
from cas.store import trees
from cas.store.chunker import Chunker, ChunkSizes
from cas.store.content import ContentBuilder
from cas.store.formats import ObjectKind, PackKind
from cas.store.keys import RepositoryKeys

SECRET = bytes(range(32))
SALT = bytes(range(100, 132))


def stream(length: int, seed: str = "backdrive") -> bytes:
    """Bytes that anyone can make: SHA-256 of "seed counter", one after the other."""
    blocks = (hashlib.sha256(f"{seed} {number}".encode()).digest() for number in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def _keys(keys: RepositoryKeys) -> dict[str, Any]:
    return {
        "secret": SECRET.hex(),
        "chunk id": keys.chunk_id.hex(),
        "metadata id": keys.meta_id.hex(),
        "chunker seed": keys.chunker_seed,
        "machine name": keys.derive("machine name").hex(),
        "salt": SALT.hex(),
        "objects": {kind.name: keys.object_key(kind, SALT).hex() for kind in ObjectKind},
        "packs": {kind.name: keys.pack_key(kind, SALT).hex() for kind in PackKind},
    }


def _chunks(keys: RepositoryKeys) -> list[dict[str, Any]]:
    data = stream(3_000_000)
    vectors = []
    for sizes in (ChunkSizes(8 << 10, 64 << 10, 512 << 10, 2), ChunkSizes(1 << 10, 8 << 10, 64 << 10, 2)):
        cuts = Chunker(sizes, keys.chunker_seed).cuts(data, final=True)
        starts = [0, *cuts[:-1]]
        ids = [blake3(data[start:end], key=keys.chunk_id).hexdigest() for start, end in zip(starts, cuts, strict=True)]
        vectors.append(
            {
                "sizes": [sizes.minimum, sizes.average, sizes.maximum, sizes.normalization],
                "cuts": cuts,
                "first id": ids[0],
                "last id": ids[-1],
            }
        )
    return vectors


class _Store:
    """Takes metadata chunks in and remembers them."""

    def __init__(self, keys: RepositoryKeys) -> None:
        self._key = keys.meta_id
        self.chunks: dict[bytes, bytes] = {}

    def __call__(self, data: bytes) -> ChunkId:
        chunk = ChunkId(blake3(data, key=self._key).digest())
        self.chunks[chunk] = data
        return chunk


def _contents(keys: RepositoryKeys) -> list[dict[str, Any]]:
    vectors = []
    for count in (0, 1, 2, 32, 33, 5000, 100_000):
        store = _Store(keys)
        builder = ContentBuilder(store)
        for number in range(count):
            builder.add(ChunkId(hashlib.sha256(str(number).encode()).digest()), 1000 + number)
        content, depth = builder.finish()
        digest = hashlib.sha256(content).hexdigest()
        vectors.append({"chunks": count, "depth": depth, "sha256 of content": digest, "lists": len(store.chunks)})
    return vectors


def _trees(keys: RepositoryKeys) -> list[dict[str, Any]]:
    owners = [Owner(0, 0, b"root", b"root"), Owner(1000, 100, b"ann", b"")]
    few = [
        Node(b"a", 0, 0o644, 1, 5, 1_700_000_000_123_456_789, 1_700_000_001_000_000_000, 12, bytes(32)),
        Node(b"dir", 1, 0o755, 0, 0, 1, 2, 13, bytes(range(32))),
        Node(
            b"\xff\xfe", 0, 0o6755, 1, 70_000, -1, 3, 14, b"\1" * 80, 1,
            Extra(xattrs={b"user.k": b"v"}, link=HardLink(2049, 3), extents=[(0, 4096), (65536, 4464)]),
        ),
        Node(b"\xff\xff", 2, 0o777, 0, 3, 4, 5, 15, b"../x"),
    ]  # fmt: skip
    many = [Node(b"%07d" % number, 0, 0o600, number % 2, 0, number, 0, number, b"") for number in range(20_000)]
    vectors = []
    for name, nodes in (("empty", []), ("few", few), ("many", many)):
        store = _Store(keys)
        tree = trees.write_tree(store, owners, nodes)
        root = store.chunks[tree]
        vectors.append(
            {
                "name": name,
                "id": tree.hex(),
                "chunks": len(store.chunks),
                "root": root.hex() if len(root) < 1000 else None,
            }
        )
    return vectors


def vectors() -> dict[str, Any]:
    """Everything that depends on nothing random."""
    keys = RepositoryKeys(SECRET)
    return {
        "keys": _keys(keys),
        "chunks": _chunks(keys),
        "contents": _contents(keys),
        "trees": _trees(keys),
    }


if __name__ == "__main__":
    print(json.dumps(vectors(), indent=1))
