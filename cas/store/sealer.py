"""Sealing: AES-256-GCM with a key per object and nonces that nobody passes in.

A `PackSealer` belongs to one new pack: its key comes from a fresh random salt and it numbers the blocks itself, so a
nonce cannot be used twice. Opening takes what the index or the table of contents says; associated data binds kind,
position, codec and length, so that a block in the wrong place does not authenticate.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Sequence
from typing import Final

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cas.errors import FormatTooNew, ObjectDamaged, PackDamaged
from cas.ids import Bytes, PackId
from cas.store.formats import (
    MAX_BLOCK_BYTES,
    OBJECT_MAGIC,
    OBJECT_PADDING,
    SALT_BYTES,
    TAG_BYTES,
    TOC_PADDING,
    Codec,
    ObjectKind,
    PackKind,
    pad,
    unpad,
)
from cas.store.keys import RepositoryKeys

_BLOCK_AAD: Final = struct.Struct("<5sBBIQ")  # "block", pack kind, codec, plain bytes, number
_TOC_NUMBER: Final = (1 << 64) - 1  # the nonce of the table of contents; no block has this number
_NONCE: Final = struct.Struct("<4xQ")
_MAX_OBJECT_BYTES: Final = 1 << 30  # of plain text


def _block_aad(kind: PackKind, codec: int, plain: int, number: int) -> bytes:
    return _BLOCK_AAD.pack(b"block", kind, codec, plain, number)


class PackSealer:
    """Seals the blocks and the table of contents of one new pack. Not thread safe where it numbers; `seal` is."""

    def __init__(self, keys: RepositoryKeys, kind: PackKind) -> None:
        self.salt: Final = secrets.token_bytes(SALT_BYTES)
        self._kind = kind
        self._cipher = AESGCM(keys.pack_key(kind, self.salt))
        self._numbers = 0
        self._toc_sealed = False

    def next_number(self) -> int:
        """Reserve the position of the next block: call under the pack's lock, then `seal_block` anywhere, once."""
        number = self._numbers
        self._numbers += 1
        return number

    def seal_block(self, number: int, codec: Codec, plain: int, payload: Bytes, out: memoryview) -> None:
        """Write the sealed payload (its length plus 16 bytes) into `out`. `number` comes from `next_number`."""
        self._cipher.encrypt_into(_NONCE.pack(number), payload, _block_aad(self._kind, codec, plain, number), out)

    def seal_toc(self, toc: bytes) -> bytes:
        """The sealed, padded table of contents. Once."""
        if self._toc_sealed:
            raise RuntimeError("a pack has one table of contents")
        self._toc_sealed = True
        return self._cipher.encrypt(_NONCE.pack(_TOC_NUMBER), pad(toc, TOC_PADDING), self._kind.name.encode())


class PackOpener:
    """Opens the blocks of one pack. Thread safe."""

    def __init__(self, keys: RepositoryKeys, kind: PackKind, pack: PackId, salt: bytes) -> None:
        self._kind = kind
        self._pack = pack
        self._cipher = AESGCM(keys.pack_key(kind, salt))

    def open_block(self, number: int, codec: int, plain: int, sealed: Bytes, offset: int) -> bytes:
        """The plain block. `offset` is for the error. Raises PackDamaged."""
        return self._plain(self._decrypt(number, codec, plain, sealed, offset), codec, plain, offset)

    def _plain(self, payload: bytes, codec: int, plain: int, offset: int) -> bytes:
        if codec == Codec.RAW:
            block = payload
        else:
            try:
                block = zstandard.ZstdDecompressor().decompress(payload, max_output_size=MAX_BLOCK_BYTES)
            except zstandard.ZstdError as error:
                raise PackDamaged(self._pack.hex(), offset, f"the block does not decompress ({error})") from None
        if len(block) != plain:
            raise PackDamaged(self._pack.hex(), offset, "the block has another length than recorded")
        return block

    def open_block_into(self, number: int, codec: int, plain: int, sealed: Bytes, offset: int, out: memoryview) -> None:
        """Write the plain block into `out`, which has its length. As `open_block`."""
        if codec == Codec.RAW and len(sealed) == plain + TAG_BYTES:
            nonce, aad = _NONCE.pack(number), _block_aad(self._kind, codec, plain, number)
            try:
                self._cipher.decrypt_into(nonce, sealed, aad, out)
            except InvalidTag:
                raise PackDamaged(self._pack.hex(), offset, "the block does not authenticate") from None
            return
        payload = self._decrypt(number, codec, plain, sealed, offset)
        try:
            # A frame that tells its size and fits is decompressed in one go, straight into the buffer.
            if codec != Codec.RAW and zstandard.frame_content_size(payload) == plain:
                with zstandard.ZstdDecompressor().stream_reader(payload) as frame:
                    if frame.readinto(out) == plain:
                        return
        except zstandard.ZstdError as error:
            raise PackDamaged(self._pack.hex(), offset, f"the block does not decompress ({error})") from None
        out[:] = self._plain(payload, codec, plain, offset)

    def _decrypt(self, number: int, codec: int, plain: int, sealed: Bytes, offset: int) -> bytes:
        try:
            return self._cipher.decrypt(_NONCE.pack(number), sealed, _block_aad(self._kind, codec, plain, number))
        except InvalidTag:
            raise PackDamaged(self._pack.hex(), offset, "the block does not authenticate") from None

    def open_toc(self, sealed: Bytes, offset: int) -> bytes:
        """The padded table of contents. Raises PackDamaged."""
        try:
            return self._cipher.decrypt(_NONCE.pack(_TOC_NUMBER), sealed, self._kind.name.encode())
        except InvalidTag:
            raise PackDamaged(self._pack.hex(), offset, "the table of contents does not authenticate") from None


def toc_opener(keys: RepositoryKeys) -> Callable[[PackKind, PackId, bytes, Bytes, int], bytes]:
    """A function that opens tables of contents (kind, pack, salt, sealed, offset): what `cas.store.pack` asks for."""

    def open_toc(kind: PackKind, pack: PackId, salt: bytes, sealed: Bytes, offset: int) -> bytes:
        return PackOpener(keys, kind, pack, salt).open_toc(sealed, offset)

    return open_toc


def _object_aad(kind: ObjectKind, name: str) -> bytes:
    return bytes([kind]) + name.encode()


def seal_object(keys: RepositoryKeys, kind: ObjectKind, name: str, payload: bytes) -> Sequence[bytes]:
    """A whole sealed object in parts, bound to its kind and name: magic, kind, salt, sealed padded zstd frame."""
    salt = secrets.token_bytes(SALT_BYTES)
    body = pad(zstandard.ZstdCompressor(level=3).compress(payload), OBJECT_PADDING)
    cipher = AESGCM(keys.object_key(kind, salt))
    return [OBJECT_MAGIC, bytes([kind]), salt, cipher.encrypt(_NONCE.pack(0), body, _object_aad(kind, name))]


def open_object(keys: RepositoryKeys, kind: ObjectKind, name: str, data: bytes) -> bytes:
    """The payload of a sealed object. Raises ObjectDamaged, FormatTooNew."""
    magic_bytes = len(OBJECT_MAGIC)
    body = magic_bytes + 1 + SALT_BYTES
    if len(data) < body + TAG_BYTES:
        raise ObjectDamaged(name, "it is cut short")
    if data[:magic_bytes] != OBJECT_MAGIC:
        if data[: magic_bytes - 1] == OBJECT_MAGIC[:-1]:
            raise FormatTooNew(name, f"version {data[magic_bytes - 1]}", f"version {OBJECT_MAGIC[-1]}")
        raise ObjectDamaged(name, "it is not a sealed object")
    cipher = AESGCM(keys.object_key(kind, data[magic_bytes + 1 : body]))
    try:
        padded = cipher.decrypt(_NONCE.pack(0), data[body:], _object_aad(kind, name))
    except InvalidTag:
        raise ObjectDamaged(name, "it does not authenticate") from None
    frame = unpad(padded)
    if frame is None or data[magic_bytes] != kind:
        raise ObjectDamaged(name, "its header contradicts its content")
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=_MAX_OBJECT_BYTES)
    except zstandard.ZstdError as error:
        raise ObjectDamaged(name, f"it does not decompress ({error})") from None
