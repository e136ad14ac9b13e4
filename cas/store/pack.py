"""Packs: header, sealed blocks back to back, sealed table of contents, footer. Bytes in, bytes out.

A builder owns one reusable buffer; blocks are sealed straight into it, from several threads, and nothing is joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from blake3 import blake3

from cas.errors import FormatTooNew, PackDamaged
from cas.ids import Bytes, PackId
from cas.store.formats import (
    MAX_BLOCKS_IN_PACK,
    MAX_PACK_BYTES,
    PACK_FOOTER,
    PACK_FOOTER_MAGIC,
    PACK_HEADER_BYTES,
    PACK_MAGIC,
    TAG_BYTES,
    BlockRecord,
    Codec,
    PackKind,
    PackRecord,
    Toc,
    check_blocks,
    decode_toc,
    encode,
)

OpenToc = Callable[[PackKind, PackId, bytes, Bytes, int], bytes]
"""Opens a sealed table of contents: kind, pack, salt, sealed bytes, their offset. Raises PackDamaged."""


class Sealer(Protocol):
    """What a builder needs of the sealer of its pack (`cas.store.sealer.PackSealer`)."""

    @property
    def salt(self) -> bytes:
        """32 random bytes of this pack alone."""

    def next_number(self) -> int:
        """Reserve the position of the next block."""

    def seal_block(self, number: int, codec: Codec, plain: int, payload: Bytes, out: memoryview) -> None:
        """Seal a block's payload into `out`, which is 16 bytes longer."""

    def seal_toc(self, toc: bytes) -> bytes:
        """The sealed table of contents."""


class PackBuilder:
    """One pack in the making. The owner's lock is held for `reserve` and `record`, and not for the sealing between."""

    def __init__(self, kind: PackKind, sealer: Sealer, open_toc: OpenToc, buffer: bytearray) -> None:
        self.kind: Final = kind
        self.sealer: Final = sealer
        self._open_toc = open_toc
        self.buffer: Final = buffer
        self._view = memoryview(buffer)
        self._view[:PACK_HEADER_BYTES] = PACK_MAGIC + self.sealer.salt
        self._end = PACK_HEADER_BYTES
        self._blocks: list[BlockRecord | None] = []
        self.pending = 0  # blocks reserved and not recorded yet
        self.closed = False

    def reserve(self, payload: int) -> tuple[int, memoryview] | None:
        """Room for a payload of so many bytes: its block number and where to seal it. None where it does not fit."""
        sealed = payload + TAG_BYTES
        if self._end + sealed > len(self.buffer) or len(self._blocks) == MAX_BLOCKS_IN_PACK:
            return None
        out = self._view[self._end : self._end + sealed]
        self._end += sealed
        number = self.sealer.next_number()
        self._blocks.append(None)
        self.pending += 1
        return number, out

    def record(self, number: int, block: BlockRecord) -> None:
        """The block of this number is sealed."""
        self._blocks[number] = block
        self.pending -= 1

    @property
    def empty(self) -> bool:
        """No block was ever put in."""
        return not self._blocks

    def finish(self) -> tuple[PackRecord, list[Bytes]]:
        """The record and the bytes of the whole pack, in parts that live as long as the buffer is left alone.

        The table of contents is opened and parsed once more, so that a pack that cannot be read is never uploaded.
        """
        blocks = [block for block in self._blocks if block is not None]
        if len(blocks) != len(self._blocks):
            raise RuntimeError("a pack is finished before all its blocks are sealed")
        toc = self.sealer.seal_toc(encode(Toc(self.kind, blocks)))
        footer = PACK_FOOTER.pack(len(toc), PACK_FOOTER_MAGIC)
        body = self._view[: self._end]
        pack = PackId(blake3(body).update(toc).update(footer).digest())
        size = self._end + len(toc) + len(footer)
        salt = read_header(pack, bytes(body[:PACK_HEADER_BYTES]))
        if decode_toc(self._open_toc(self.kind, pack, salt, toc, self._end), pack) != Toc(self.kind, blocks):
            raise PackDamaged(pack.hex(), self._end, "its table of contents did not survive sealing (faulty memory?)")
        check_blocks(pack, size, blocks)
        return PackRecord(pack, self.kind, size, self.sealer.salt, blocks), [body, toc, footer]


def read_header(pack: PackId, head: bytes) -> bytes:
    """The salt of a pack from its first bytes. Raises PackDamaged, FormatTooNew."""
    magic = len(PACK_MAGIC)
    if head[:magic] != PACK_MAGIC:
        if head[: magic - 1] == PACK_MAGIC[:-1] and len(head) >= magic:
            raise FormatTooNew(f"pack {pack.hex()}", f"version {head[magic - 1]}", f"version {PACK_MAGIC[-1]}")
        raise PackDamaged(pack.hex(), 0, "it does not start as a pack does")
    if len(head) < PACK_HEADER_BYTES:
        raise PackDamaged(pack.hex(), 0, "it is cut short")
    return head[magic:PACK_HEADER_BYTES]


def toc_length(pack: PackId, size: int, footer: bytes) -> int:
    """Bytes of the sealed table of contents, from the pack's last 8 bytes. Raises PackDamaged."""
    if len(footer) != PACK_FOOTER.size or size > MAX_PACK_BYTES:
        raise PackDamaged(pack.hex(), size, "it has no footer")
    length, magic = PACK_FOOTER.unpack(footer)
    if magic != PACK_FOOTER_MAGIC or not TAG_BYTES < length <= size - PACK_FOOTER.size - PACK_HEADER_BYTES:
        raise PackDamaged(pack.hex(), size - PACK_FOOTER.size, "it has no footer")
    return int(length)


def open_record(open_toc: OpenToc, pack: PackId, size: int, salt: bytes, sealed_toc: bytes) -> PackRecord:
    """The record of a pack from its own table of contents. The kind is found by trying. Raises PackDamaged."""
    offset = size - PACK_FOOTER.size - len(sealed_toc)
    for kind in PackKind:
        try:
            padded = open_toc(kind, pack, salt, sealed_toc, offset)
        except PackDamaged:
            continue
        toc = decode_toc(padded, pack)
        if toc.kind != kind:
            break
        check_blocks(pack, size, toc.blocks)
        return PackRecord(pack, kind, size, salt, toc.blocks)
    raise PackDamaged(pack.hex(), offset, "the table of contents does not authenticate")
