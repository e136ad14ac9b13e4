"""The store against any bytes: what goes in comes out, and what was never put in is refused with a proper error."""

from __future__ import annotations

import functools
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cas.errors import BackdriveError, TreeDamaged
from cas.ids import ChunkId, MachineId, PackId, PointId
from cas.model import Extra, HardLink, Node, Owner, Point, PointStats, Stream, Tree, TreePage, WindowsExtra
from cas.store import formats, keys, trees
from cas.store.content import FileContent
from cas.store.formats import BlockRecord, ObjectKind, PackRecord, Toc
from cas.store.keys import RepositoryKeys
from cas.store.pack import open_record, read_header, toc_length
from cas.store.parameters import Parameters
from cas.store.sealer import open_object, seal_object, toc_opener
from cas.vault.memory import MemoryVault
from tests.engine import cheap_keys, make_world

KEYS = RepositoryKeys(bytes(range(32)))
NAME = "repositories/r/points/p"
PACK = PackId(bytes(32))

ids = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**63 - 1)
times = st.integers(-(2**63), 2**63 - 1)
short = st.binary(max_size=20)
texts = st.text(max_size=10)
windows = st.builds(
    WindowsExtra, numbers, short, st.lists(st.builds(Stream, short, numbers, short, numbers), max_size=2), short, short
)
extras = st.builds(
    Extra,
    xattrs=st.dictionaries(short, short, max_size=3),
    device=st.none() | st.tuples(numbers, numbers),
    link=st.none() | st.builds(HardLink, numbers, numbers),
    extents=st.none() | st.lists(st.tuples(numbers, numbers), max_size=3),
    partial=st.booleans(),
    birth=times,
    windows=st.none() | windows,
)
nodes = st.builds(
    Node, short, st.integers(0, 6), numbers, numbers, numbers, times, times, numbers, short, numbers, st.none() | extras
)
owners = st.builds(Owner, numbers, numbers, short, short)
stored_trees = st.builds(Tree, st.lists(owners, max_size=3), st.lists(nodes, max_size=4))
blocks = st.builds(BlockRecord, numbers, numbers, numbers, short, st.lists(numbers, max_size=4))
packs = st.builds(PackRecord, ids, numbers, numbers, ids, st.lists(blocks, max_size=3))
points = st.builds(
    Point,
    id=texts.map(PointId),
    machine_id=texts.map(MachineId),
    machine=texts,
    started=times,
    finished=times,
    paths=st.lists(short, max_size=3),
    root=ids.map(ChunkId),
    root_node=st.none() | nodes,
    parent=st.none() | texts.map(PointId),
    excludes=st.lists(texts, max_size=2),
    tags=st.dictionaries(texts, texts, max_size=2),
    stats=st.builds(PointStats, numbers, numbers),
    utc_offset=st.integers(-86400, 86400),
)
structs: st.SearchStrategy[Any] = st.one_of(
    stored_trees,
    st.builds(TreePage, short, numbers, ids.map(ChunkId)),
    packs,
    st.builds(Toc, numbers, st.lists(blocks)),
    points,
)


@given(structs)
def test_every_struct_decodes_to_itself(value: Any) -> None:
    assert formats.decode(formats.encode(value), type(value), "x") == value


@given(st.binary(max_size=2000), st.integers(1, 2000))
def test_padding(payload: bytes, multiple: int) -> None:
    padded = formats.pad(payload, multiple)
    assert len(padded) % multiple == 0
    assert formats.unpad(padded) == payload


@given(st.sampled_from(ObjectKind), st.binary(max_size=5000))
def test_objects(kind: ObjectKind, payload: bytes) -> None:
    assert open_object(KEYS, kind, NAME, b"".join(seal_object(KEYS, kind, NAME, payload))) == payload


# --- decoders against anything ----------------------------------------------------------------------------------------


def _pack_parts(data: bytes) -> None:
    read_header(PACK, data)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "point": lambda data: formats.decode(data, Point, "x"),
    "packs": lambda data: formats.decode(data, list[PackRecord], "x"),
    "parameters": lambda data: formats.decode(data, Parameters, "x"),
    "map": lambda data: formats.decode(data, dict[str, object], "x"),
    "toc": lambda data: formats.decode_toc(data, PACK),
    "padded toc": lambda data: formats.decode_toc(formats.pad(data, 8), PACK),
    "pages": lambda data: list(trees.pages(lambda _: data, ChunkId(bytes(32)))),
    "lookup": lambda data: trees.lookup(lambda _: data, ChunkId(bytes(32)), b"a"),
    "content": lambda data: list(FileContent(lambda _: data, 10, bytes(32) + (10).to_bytes(8, "little"), 1).pieces()),
    "reference": lambda data: FileContent(lambda _: b"", 10, data, 0),
    "header": lambda data: formats.decode_header(data, "backdrive vault", "x"),
    "slot": lambda data: keys.slot_about(data, "x"),
    "open slot": lambda data: keys.open_slot(data, "a passphrase of enough length", "x", "x"),
    "object": lambda data: open_object(KEYS, ObjectKind.POINT, NAME, data),
    "pack header": _pack_parts,
    "pack footer": lambda data: toc_length(PACK, 5000, data),
    "pack toc": lambda data: open_record(toc_opener(KEYS), PACK, 5000, bytes(32), data),
}

SEEDS: list[bytes] = [
    formats.encode(Toc(1, [BlockRecord(20, 4, 0, bytes(32), [4])])),
    formats.pad(formats.encode(Toc(1, [BlockRecord(20, 4, 0, bytes(32), [4])])), 64),
    b"\0" + formats.encode(Tree([Owner(0, 0)], [Node(b"a", 0, 0o644, 0, 0, 1, 1, 1, b"")])),
    b"\1" + formats.encode([TreePage(b"a", 1, ChunkId(bytes(32)))]),
    formats.encode([PackRecord(bytes(32), 1, 100, bytes(32), [BlockRecord(20, 4, 0, bytes(32), [4])])]),
    formats.encode(Parameters()),
    formats.encode_header("backdrive vault", "x"),
    formats.encode_header(
        "backdrive key slot",
        "x",
        kdf="argon2id",
        passes=1,
        memory_kib=8,
        lanes=1,
        salt="00" * 16,
        sealed="00" * 48,
        about="",
    ),
    b"".join(seal_object(KEYS, ObjectKind.POINT, NAME, b"payload")),
    formats.PACK_MAGIC + bytes(32),
    formats.PACK_FOOTER.pack(1024, formats.PACK_FOOTER_MAGIC),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Something valid with some bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0 if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case 1:
                del data[at:]
            case 2:
                del data[at : at + draw(st.integers(1, 8))]
            case _:
                data[at:at] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(max_examples=300)
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=300) | mutated())
@example("map", b"\x81\xa2\x00\x80")  # a key that is no UTF-8
def test_decoders_raise_nothing_of_their_own(which: str, data: bytes) -> None:
    try:
        DECODERS[which](data)
    except BackdriveError as error:
        assert str(error)


@settings(max_examples=60)
@given(nodes)
def test_nodes_that_no_writer_made(node: Node) -> None:
    extents = None if node.extra is None else node.extra.extents
    try:
        content = FileContent(lambda _: b"", node.size, node.content, node.depth, extents)
        list(content.pieces(0, 1000))
    except TreeDamaged:
        pass


# --- there and back ---------------------------------------------------------------------------------------------------

pieces = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 40_000)), max_size=12
)  # (which of four streams, how much of it): the same parts come again


@functools.cache
def stream(which: int) -> bytes:
    import random

    return bytes(40_000) if which == 0 else random.Random(which).randbytes(40_000)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(pieces, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_files_of_repeating_parts(files: list[list[tuple[int, int]]], rng: Any) -> None:
    datas = [b"".join(stream(which)[:length] for which, length in parts) for parts in files]
    with tempfile.TemporaryDirectory(prefix="backdrive-store-") as directory, pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        world = make_world(MemoryVault(), Path(directory))
        with world.open() as repository:
            with repository.writer() as writer:
                written = [writer.file(io.BytesIO(data).readinto, len(data)) for data in datas]
                counts = writer.finish()
            assert counts.added_plain <= sum(map(len, datas)) + 100_000
            reader = repository.reader(cache_bytes=100_000)
            for data, (content, depth, total) in zip(datas, written, strict=True):
                assert total == len(data)
                opened = FileContent(reader.chunk, total, content, depth)
                for start, end in ((0, total), sorted((rng.randint(0, total), rng.randint(0, total)))):
                    found = bytearray(end - start)
                    for piece in opened.pieces(start, end):
                        at = piece.offset - start
                        found[at : at + piece.length] = reader.verified(piece.chunk)[
                            piece.skip : piece.skip + piece.length
                        ]
                    assert found == data[start:end]
