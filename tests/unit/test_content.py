"""Content references: lists of every depth, and any range of a file against its plain bytes."""

from __future__ import annotations

import random
import struct
from hashlib import sha256

import pytest

from cas.errors import TreeDamaged
from cas.ids import ChunkId
from cas.store import content as content_module
from cas.store.content import ENTRY, ContentBuilder, FileContent, ListCache


class File:
    """A file of random chunks: its reference, and its bytes."""

    def __init__(self, chunks: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.chunks: dict[ChunkId, bytes] = {}
        self.lists: set[ChunkId] = set()
        builder = ContentBuilder(self._store)
        pieces = []
        for _ in range(chunks):
            data = rng.randbytes(rng.randint(1, 40))
            builder.add(self._keep(data), len(data))
            pieces.append(data)
        self.data = b"".join(pieces)
        self.content, self.depth = builder.finish()

    def _keep(self, data: bytes) -> ChunkId:
        chunk = ChunkId(sha256(data).digest())
        self.chunks[chunk] = data
        return chunk

    def _store(self, data: bytes) -> ChunkId:
        chunk = self._keep(data)
        self.lists.add(chunk)
        return chunk

    def open(self, extents: list[tuple[int, int]] | None = None, size: int | None = None) -> FileContent:
        return FileContent(self.chunks.__getitem__, size or len(self.data), self.content, self.depth, extents)

    def read(self, opened: FileContent, start: int, end: int) -> bytes:
        found = bytearray(max(min(end, opened.size) - start, 0))
        last = start
        for piece in opened.pieces(start, end):
            assert piece.offset >= last
            assert piece.chunk_length == len(self.chunks[piece.chunk])
            last = piece.offset + piece.length
            data = self.chunks[piece.chunk][piece.skip : piece.skip + piece.length]
            found[piece.offset - start : last - start] = data
        return bytes(found)


@pytest.fixture
def small_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "INLINE_MOST", 4)
    monkeypatch.setattr(content_module, "LIST_LEAST", 3)
    monkeypatch.setattr(content_module, "LIST_MOST", 8)
    monkeypatch.setattr(content_module, "_LIST_MASK", 3)


@pytest.mark.parametrize("chunks, depth", [(0, 0), (1, 0), (2, 0), (3, 1), (12, 1), (60, 2), (400, 3), (3000, 4)])
def test_any_range_reads_as_the_bytes_do(small_lists: None, chunks: int, depth: int) -> None:
    file = File(chunks)
    assert abs(file.depth - depth) <= 1
    opened = file.open()
    size = len(file.data)
    assert file.read(opened, 0, size) == file.data
    rng = random.Random(2)
    for _ in range(60):
        start, end = sorted((rng.randint(0, size + 3), rng.randint(0, size + 3)))
        assert file.read(opened, start, end) == file.data[start:end]
    assert list(opened.pieces(size)) == []


def test_short_files_have_short_references() -> None:
    assert File(0).content == b""
    assert len(File(1).content) == 32
    assert len(File(2).content) == 80


def test_a_change_rewrites_few_lists() -> None:
    file = File(20_000)
    assert file.depth >= 2
    entries = [(piece.chunk, piece.chunk_length) for piece in file.open().pieces()]
    for at in (0, 10_000, 19_999):
        changed = File(0)
        builder = ContentBuilder(changed._store)
        for number, (chunk, length) in enumerate(entries):
            builder.add(ChunkId(bytes(32)) if number == at else chunk, length)
        builder.finish()
        new = changed.lists - file.lists
        assert len(new) <= 8
        assert sum(len(changed.chunks[chunk]) for chunk in new) < 30_000


def test_holes(small_lists: None) -> None:
    file = File(50)
    total = len(file.data)
    extents = [(10, 100), (500, 0), (600, total - 150), (600 + total, 50)]
    size = 700 + total
    plain = bytearray(size)
    position = 0
    for offset, length in extents:
        plain[offset : offset + length] = file.data[position : position + length]
        position += length
    opened = file.open(extents, size)
    assert opened.extents == extents
    rng = random.Random(3)
    for _ in range(80):
        start, end = sorted((rng.randint(0, size), rng.randint(0, size)))
        assert file.read(opened, start, end) == plain[start:end]


@pytest.mark.parametrize(
    "size, content, depth, extents",
    [
        (5, bytes(33), 0, None),
        (5, ENTRY.pack(bytes(32), 4), 0, None),
        (5, b"", 0, None),
        (0, ENTRY.pack(bytes(32), 4), 0, None),
        (5, ENTRY.pack(bytes(32), 5), 99, None),
        (5, ENTRY.pack(bytes(32), 5), -1, None),
        (5, bytes(32), 0, [(0, 3), (2, 2)]),
        (5, bytes(32), 0, [(0, 6)]),
        (5, bytes(32), 0, [(0, -1)]),
        (5, bytes(32), 0, [(-1, 1)]),
        (5, ENTRY.pack(bytes(32), 1 << 63) * 2, 0, None),
    ],
)
def test_references_that_cannot_be(
    size: int, content: bytes, depth: int, extents: list[tuple[int, int]] | None
) -> None:
    with pytest.raises(TreeDamaged):
        FileContent(lambda _: b"", size, content, depth, extents)


@pytest.mark.parametrize("listed", [b"", b"odd", ENTRY.pack(bytes(32), 9), struct.pack("<40x")])
def test_lists_that_contradict_what_names_them(listed: bytes) -> None:
    opened = FileContent(lambda _: listed, 10, ENTRY.pack(bytes(32), 10), 1)
    with pytest.raises(TreeDamaged):
        list(opened.pieces())


def test_decoded_lists_are_kept_for_many_files_and_bounded() -> None:
    files = [File(2000, seed) for seed in range(3)]
    loaded: list[ChunkId] = []
    cache = ListCache(1000)

    def opened(file: File) -> FileContent:
        def load(chunk: ChunkId) -> bytes:
            loaded.append(chunk)
            return file.chunks[chunk]

        return FileContent(load, len(file.data), file.content, file.depth, lists=cache)

    for _ in range(2):  # what was read last is at hand for another who opens the same file
        assert len(list(opened(files[0]).pieces(0, 500))) > 1
    assert len(loaded) == len(set(loaded)) > 0
    for file in files:
        assert sum(piece.length for piece in opened(file).pieces()) == len(file.data)
    assert cache.entries <= 1000
