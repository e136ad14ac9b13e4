"""Writing needed chunks anew: out of packs that are given up, into new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cas.errors import PackDamaged
from cas.ids import CHUNK_ID_BYTES, PackId
from cas.repository import Repository
from cas.store.formats import PACK_FOOTER, PACK_HEADER_BYTES, PackKind
from cas.store.pack import open_record, read_header, toc_length
from cas.store.sealer import PackOpener, toc_opener
from cas.store.writer import Writer

Needs = Callable[[int, int], bool]
"""Whether the chunk at a place is needed: number of the block, offset in the plain block."""


def copy_pack(repository: Repository, writer: Writer, kind: PackKind, pack: PackId, needs: Needs) -> int:
    """Hand to `writer` every chunk of a pack that is needed. Returns their plain bytes.

    The pack itself tells where they are. Raises PackDamaged, ObjectMissing and the vault's errors; what was handed over
    before is no harm.
    """
    data = repository.vault.get(repository.layout.pack(kind, pack))
    size = len(data)
    salt = read_header(pack, data[:PACK_HEADER_BYTES])
    length = toc_length(pack, size, data[max(size - PACK_FOOTER.size, 0) :])
    sealed_toc = data[size - PACK_FOOTER.size - length : size - PACK_FOOTER.size]
    record = open_record(toc_opener(repository.keys), pack, size, salt, sealed_toc)
    opener = PackOpener(repository.keys, kind, pack, salt)
    view = memoryview(data)
    copied = 0
    place = PACK_HEADER_BYTES
    for number, block in enumerate(record.blocks):
        wanted = list(_wanted(number, block.lengths, needs))
        if wanted:
            sealed = view[place : place + block.sealed]
            plain = memoryview(opener.open_block(number, block.codec, block.plain, sealed, place))
            for position, offset, chunk_length in wanted:
                chunk = writer.copy(plain[offset : offset + chunk_length], kind, block.plain)
                start = position * CHUNK_ID_BYTES
                if chunk != block.ids[start : start + CHUNK_ID_BYTES]:
                    raise PackDamaged(pack.hex(), place, "a chunk in it is not what its id promises")
                copied += chunk_length
        place += block.sealed
    return copied


def _wanted(number: int, lengths: list[int], needs: Needs) -> Iterable[tuple[int, int, int]]:
    """(position, offset, length) of the chunks of a block that are needed."""
    offset = 0
    for position, length in enumerate(lengths):
        if needs(number, offset):
            yield position, offset, length
        offset += length
