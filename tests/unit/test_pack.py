"""Sealed objects and packs: round trips, and every way in which they can be cut, moved or changed."""

from __future__ import annotations

import secrets

import pytest
import zstandard

from cas.errors import FormatTooNew, ObjectDamaged, PackDamaged
from cas.ids import PackId
from cas.store.formats import (
    MAX_BLOCK_BYTES,
    PACK_FOOTER,
    PACK_HEADER_BYTES,
    BlockRecord,
    Codec,
    ObjectKind,
    PackKind,
    PackRecord,
    Toc,
    check_blocks,
    encode,
)
from cas.store.keys import RepositoryKeys
from cas.store.pack import PackBuilder, open_record, read_header, toc_length
from cas.store.sealer import PackOpener, PackSealer, open_object, seal_object, toc_opener

KEYS = RepositoryKeys(bytes(range(32)))


def build(kind: PackKind, plains: list[bytes], keys: RepositoryKeys = KEYS) -> tuple[PackRecord, bytes]:
    """A pack of blocks with one chunk each; every second one is compressed."""
    builder = PackBuilder(kind, PackSealer(keys, kind), toc_opener(keys), bytearray(1 << 20))
    for position, plain in enumerate(plains):
        codec = Codec.ZSTD if position % 2 else Codec.RAW
        payload = zstandard.ZstdCompressor().compress(plain) if codec == Codec.ZSTD else plain
        reserved = builder.reserve(len(payload))
        assert reserved is not None
        number, out = reserved
        builder.sealer.seal_block(number, codec, len(plain), payload, out)
        builder.record(number, BlockRecord(len(payload) + 16, len(plain), codec, secrets.token_bytes(32), [len(plain)]))
    record, parts = builder.finish()
    return record, b"".join(parts)


def parse(data: bytes, pack: PackId, keys: RepositoryKeys = KEYS) -> PackRecord:
    salt = read_header(pack, data[:PACK_HEADER_BYTES])
    length = toc_length(pack, len(data), data[max(len(data) - PACK_FOOTER.size, 0) :])
    sealed = data[len(data) - PACK_FOOTER.size - length : len(data) - PACK_FOOTER.size]
    return open_record(toc_opener(keys), pack, len(data), salt, sealed)


def blocks_of(data: bytes, record: PackRecord) -> list[bytes]:
    opener = PackOpener(KEYS, PackKind(record.kind), PackId(record.id), record.salt)
    offset = PACK_HEADER_BYTES
    found = []
    for number, block in enumerate(record.blocks):
        sealed = memoryview(data)[offset : offset + block.sealed]
        plain = opener.open_block(number, block.codec, block.plain, sealed, offset)
        out = bytearray(block.plain)
        opener.open_block_into(number, block.codec, block.plain, sealed, offset, memoryview(out))
        assert out == plain
        found.append(plain)
        offset += block.sealed
    return found


PLAINS = [b"one" * 1000, b"two" * 5000, b"3", b"four" * 10]


@pytest.mark.parametrize("kind", PackKind)
def test_round_trip(kind: PackKind) -> None:
    record, data = build(kind, PLAINS)
    assert record.size == len(data)
    assert parse(data, PackId(record.id)) == record
    assert blocks_of(data, record) == PLAINS
    assert b"one" not in data


def test_every_region_cut_or_changed() -> None:
    record, data = build(PackKind.DATA, PLAINS)
    pack = PackId(record.id)
    for length in [*range(60), *range(60, len(data), 41), len(data) - 1]:
        with pytest.raises(PackDamaged):
            parse(data[:length], pack)
    toc = len(data) - PACK_FOOTER.size - PACK_FOOTER.unpack(data[-PACK_FOOTER.size :])[0]
    for position in [*range(PACK_HEADER_BYTES), *range(toc, len(data), 13), *range(len(data) - 8, len(data))]:
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises((PackDamaged, FormatTooNew)):
            parse(bytes(changed), pack)
    for position in range(PACK_HEADER_BYTES, toc, 31):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(PackDamaged):
            blocks_of(bytes(changed), record)


def test_blocks_do_not_open_elsewhere() -> None:
    record, data = build(PackKind.DATA, [b"same" * 100, b"other" * 100, b"same" * 100])
    opener = PackOpener(KEYS, PackKind.DATA, PackId(record.id), record.salt)
    first = record.blocks[0]
    sealed = data[PACK_HEADER_BYTES : PACK_HEADER_BYTES + first.sealed]
    assert opener.open_block(0, first.codec, first.plain, sealed, 0)
    wrong_kind = PackOpener(KEYS, PackKind.TREE, PackId(record.id), record.salt)
    other = Codec.RAW if first.codec == Codec.ZSTD else Codec.ZSTD
    for wrong, number, codec, plain, part in (
        (opener, 2, first.codec, first.plain, sealed),
        (opener, 0, other, first.plain, sealed),
        (opener, 0, first.codec, first.plain + 1, sealed),
        (opener, 0, first.codec, first.plain, sealed[:8]),
        (opener, 0, first.codec, first.plain, b""),
        (opener, 0, Codec.RAW, 8, sealed[:24]),
        (wrong_kind, 0, first.codec, first.plain, sealed),
    ):
        with pytest.raises(PackDamaged):
            wrong.open_block(number, codec, plain, part, 0)
        with pytest.raises(PackDamaged):
            wrong.open_block_into(number, codec, plain, part, 0, memoryview(bytearray(plain)))
    with pytest.raises(PackDamaged):
        parse(data, PackId(record.id), RepositoryKeys(bytes(32)))


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("recorded", [99, 100, 101])
def test_a_block_of_another_length_than_recorded(codec: Codec, recorded: int) -> None:
    """A fault of the writer: it authenticates."""
    sealer = PackSealer(KEYS, PackKind.DATA)
    payload = b"x" * 100 if codec == Codec.RAW else zstandard.ZstdCompressor().compress(b"x" * 100)
    sealed = bytearray(len(payload) + 16)
    sealer.seal_block(sealer.next_number(), codec, recorded, payload, memoryview(sealed))
    opener = PackOpener(KEYS, PackKind.DATA, PackId(bytes(32)), sealer.salt)
    out = bytearray(recorded)
    if recorded == 100:
        opener.open_block_into(0, codec, recorded, sealed, 0, memoryview(out))
        assert out == b"x" * 100
        return
    with pytest.raises(PackDamaged, match="another length"):
        opener.open_block_into(0, codec, recorded, sealed, 0, memoryview(out))


def test_a_frame_that_does_not_tell_its_size_is_read_too() -> None:
    sealer = PackSealer(KEYS, PackKind.DATA)
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(b"y" * 5000)
    sealed = bytearray(len(payload) + 16)
    sealer.seal_block(sealer.next_number(), Codec.ZSTD, 5000, payload, memoryview(sealed))
    out = bytearray(5000)
    opener = PackOpener(KEYS, PackKind.DATA, PackId(bytes(32)), sealer.salt)
    opener.open_block_into(0, Codec.ZSTD, 5000, sealed, 0, memoryview(out))
    assert out == b"y" * 5000


def test_a_full_builder_says_so() -> None:
    builder = PackBuilder(PackKind.DATA, PackSealer(KEYS, PackKind.DATA), toc_opener(KEYS), bytearray(200))
    assert builder.reserve(200 - PACK_HEADER_BYTES - 15) is None
    reserved = builder.reserve(200 - PACK_HEADER_BYTES - 16)
    assert reserved is not None
    assert builder.reserve(1) is None
    with pytest.raises(RuntimeError):
        builder.finish()  # before its block is sealed


def test_one_table_of_contents() -> None:
    sealer = PackSealer(KEYS, PackKind.DATA)
    sealer.seal_toc(b"x")
    with pytest.raises(RuntimeError):
        sealer.seal_toc(b"x")


@pytest.mark.parametrize(
    "block",
    [
        BlockRecord(100, 0, 0, b"", []),
        BlockRecord(100, 84, 0, bytes(32), [83]),
        BlockRecord(100, 84, 0, bytes(31), [84]),
        BlockRecord(100, 84, 0, bytes(64), [90, -6]),
        BlockRecord(16, 84, 0, bytes(32), [84]),
        BlockRecord(101, 84, 0, bytes(32), [84]),
        BlockRecord(100, MAX_BLOCK_BYTES + 1, 1, bytes(32), [MAX_BLOCK_BYTES + 1]),
        BlockRecord(100, 84, 2, bytes(32), [84]),
        BlockRecord(1 << 20, 1 << 20, 0, bytes(32), [1 << 20]),
    ],
)
def test_tables_that_contradict_themselves(block: BlockRecord) -> None:
    with pytest.raises(PackDamaged):
        check_blocks(PackId(bytes(32)), 1000, [block])


def test_a_table_of_another_kind_is_refused() -> None:
    sealer = PackSealer(KEYS, PackKind.DATA)
    toc = sealer.seal_toc(encode(Toc(PackKind.TREE, [])))
    with pytest.raises(PackDamaged):
        open_record(toc_opener(KEYS), PackId(bytes(32)), 5000, sealer.salt, toc)


# --- objects ----------------------------------------------------------------------------------------------------------


def test_objects_open_only_as_what_and_where_they_are() -> None:
    sealed = b"".join(seal_object(KEYS, ObjectKind.POINT, "points/a", b"payload" * 50))
    assert open_object(KEYS, ObjectKind.POINT, "points/a", sealed) == b"payload" * 50
    assert b"payload" not in sealed
    for keys, kind, name in (
        (KEYS, ObjectKind.POINT, "points/b"),
        (KEYS, ObjectKind.MACHINE, "points/a"),
        (RepositoryKeys(bytes(32)), ObjectKind.POINT, "points/a"),
    ):
        with pytest.raises(ObjectDamaged):
            open_object(keys, kind, name, sealed)
    for length in range(len(sealed)):
        with pytest.raises(ObjectDamaged):
            open_object(KEYS, ObjectKind.POINT, "points/a", sealed[:length])
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x10
        with pytest.raises((ObjectDamaged, FormatTooNew)):
            open_object(KEYS, ObjectKind.POINT, "points/a", bytes(changed))


def test_lengths_are_hidden_in_steps() -> None:
    sizes = {len(b"".join(seal_object(KEYS, ObjectKind.POINT, "p", secrets.token_bytes(n)))) for n in range(1, 200)}
    assert len(sizes) == 1
