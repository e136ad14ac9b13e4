"""Opening packs whole: the hash, the table of contents, every block and every chunk in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from cas.errors import FormatTooNew, ObjectMissing, PackDamaged, VaultUnavailable
from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.repository import Repository
from cas.store.formats import PACK_FOOTER, PACK_HEADER_BYTES, BlockRecord, PackKind
from cas.store.index import BlockInfo, PackInfo
from cas.store.layout import VAULT_HEADER
from cas.store.pack import open_record, read_header, toc_length
from cas.store.sealer import PackOpener, toc_opener

_THREADS: Final = 2


@dataclass(slots=True)
class PackFindings:
    """What is wrong with one pack: nothing where `reasons` is empty."""

    number: int
    size: int = 0  # bytes read
    reasons: list[str] = field(default_factory=list)
    missing: bool = False
    blocks: list[int] = field(default_factory=list)  # those that do not open
    chunks: list[ChunkId] = field(default_factory=list)  # those that are not what their ids promise, in whole blocks
    cache_differs: bool = False  # the pack is whole, and this machine's index says something else of it


def scrub(repository: Repository, packs: list[tuple[int, PackInfo]], take: Callable[[PackFindings], None]) -> None:
    """Open every pack of `packs`, each fetched once, and hand what was found to `take`, in order.

    Raises the vault's errors where the vault as a whole cannot be read.
    """
    running: deque[Future[PackFindings]] = deque()
    with ThreadPoolExecutor(_THREADS, "scrub") as threads:
        try:
            for number, info in packs:
                running.append(threads.submit(_pack, repository, number, info))
                if len(running) > _THREADS:
                    take(running.popleft().result())
            while running:
                take(running.popleft().result())
        finally:
            for future in running:
                future.cancel()


def _pack(repository: Repository, number: int, info: PackInfo) -> PackFindings:
    found = PackFindings(number)
    try:
        data = repository.vault.get(repository.layout.pack(info.kind, info.id))
    except ObjectMissing:
        found.missing = True
        found.reasons.append("it is missing")
        return found
    except VaultUnavailable as error:
        repository.vault.size(VAULT_HEADER)  # where the whole vault is out of reach, that is to be said
        found.missing = True
        found.reasons.append(f"it cannot be read ({error.args[0]})")
        return found
    found.size = len(data)
    if blake3(data).digest() != info.id:
        found.reasons.append("its bytes do not hash to its name")
    table = _table(repository, data, number, info, found)
    _open_blocks(repository, memoryview(data), number, info, table, found)
    return found


def _table(
    repository: Repository, data: bytes, number: int, info: PackInfo, found: PackFindings
) -> list[BlockRecord] | None:
    """The blocks as the pack itself names them, or None where it cannot tell or the index contradicts it."""
    size = len(data)
    try:
        salt = read_header(info.id, data[:PACK_HEADER_BYTES])
        length = toc_length(info.id, size, data[max(size - PACK_FOOTER.size, 0) :])
        sealed = data[size - PACK_FOOTER.size - length : size - PACK_FOOTER.size]
        record = open_record(toc_opener(repository.keys), info.id, size, salt, sealed)
    except PackDamaged as error:
        found.reasons.append(error.reason)
        return None
    except FormatTooNew as error:
        found.reasons.append(str(error.args[0]).rstrip("."))
        return None
    agrees = (record.kind, record.size, record.salt) == (info.kind, info.size, info.salt)
    if not agrees or not _same_blocks(repository, number, record.blocks):
        found.cache_differs = not found.reasons
        found.reasons.append("the index of this machine contradicts its table of contents")
        return None
    return record.blocks


def _same_blocks(repository: Repository, number: int, blocks: list[BlockRecord]) -> bool:
    """Whether the index has just these blocks, and knows where each of their chunks is."""
    offset = PACK_HEADER_BYTES
    expected = []
    for block in blocks:
        expected.append(BlockInfo(offset, block.sealed, block.plain, block.codec))
        offset += block.sealed
    if repository.index.blocks(number) != expected:
        return False
    for position, block in enumerate(blocks):
        start = 0
        for length, location in zip(block.lengths, repository.index.find_many(_ids(block)), strict=True):
            if location is None or location.length != length:
                return False
            # A chunk may be in another pack as well, and the index keeps one of the places.
            if location.pack == number and location.block == position and location.offset != start:
                return False
            start += length
    return True


def _ids(block: BlockRecord) -> list[ChunkId]:
    ids = block.ids
    return [ChunkId(ids[at : at + CHUNK_ID_BYTES]) for at in range(0, len(ids), CHUNK_ID_BYTES)]


def _open_blocks(
    repository: Repository,
    view: memoryview,
    number: int,
    info: PackInfo,
    table: list[BlockRecord] | None,
    found: PackFindings,
) -> None:
    """Open what the index names, as a reader would; hash the chunks where the table of contents tells them."""
    keys = repository.keys
    opener = PackOpener(keys, info.kind, info.id, info.salt)
    key = keys.meta_id if info.kind == PackKind.TREE else keys.chunk_id
    for position, where in enumerate(repository.index.blocks(number)):
        sealed = view[where.offset : where.offset + where.sealed]
        try:
            plain = opener.open_block(position, where.codec, where.plain, sealed, where.offset)
        except PackDamaged as error:
            found.blocks.append(position)
            found.reasons.append(f"block {position} at byte {where.offset}: {error.reason}")
            continue
        if table is not None:
            wrong = _wrong_chunks(plain, table[position], key)
            if wrong:
                found.chunks += wrong
                found.reasons.append(f"block {position} holds {len(wrong)} chunks that are not what their ids promise")


def _wrong_chunks(plain: bytes, block: BlockRecord, key: bytes) -> list[ChunkId]:
    view = memoryview(plain)
    ids = block.ids
    wrong = []
    offset = at = 0
    for length in block.lengths:
        end = offset + length
        expected = ids[at : at + CHUNK_ID_BYTES]
        if blake3(view[offset:end], key=key).digest() != expected:
            wrong.append(ChunkId(expected))
        offset = end
        at += CHUNK_ID_BYTES
    return wrong
