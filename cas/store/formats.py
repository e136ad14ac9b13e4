"""The bytes of sealed objects and of tables of contents. The specification is `cas/FORMAT.md`.

Only layout lives here: no keys, no files, no clock. Decoding never trusts a length that it has not compared with what
it holds, and raises `ObjectDamaged`, `PackDamaged` or `FormatTooNew`, never a library's exception.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Any, Final, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Struct

from cas.errors import FormatTooNew, ObjectDamaged, PackDamaged
from cas.ids import CHUNK_ID_BYTES, PackId

FORMAT_VERSION: Final = 1
KNOWN_FEATURES: Final[frozenset[str]] = frozenset()

PACK_MAGIC: Final = b"BKDPACK\x01"
OBJECT_MAGIC: Final = b"BKDOBJ\x01"
SALT_BYTES: Final = 32
TAG_BYTES: Final = 16  # of AES-GCM
PACK_HEADER_BYTES: Final = len(PACK_MAGIC) + SALT_BYTES
PACK_FOOTER: Final = struct.Struct("<I4s")  # length of the sealed table of contents, magic
PACK_FOOTER_MAGIC: Final = b"TOC\x01"
TOC_PADDING: Final = 1024  # the plain table is padded to a multiple, so that its length tells little of the chunk count
OBJECT_PADDING: Final = 256
VOID_ENDING: Final = b"\0"  # after a sealed object that is no point: its size alone tells that, as no other has it
MAX_BLOCK_BYTES: Final = 32 << 20  # of plain text; a reader refuses more
MAX_PACK_BYTES: Final = 1 << 30
MAX_BLOCKS_IN_PACK: Final = 65535
_LENGTH: Final = struct.Struct("<I")
_NO_DIGEST: Final = b"0" * 64  # stands in a header for its own BLAKE3 while that is computed


class ObjectKind(IntEnum):
    """What a sealed object is. The number is in its header, its key and its associated data."""

    INDEX = 1
    POINT = 2
    MACHINE = 3
    SESSION = 4
    PARAMETERS = 5
    KEY_ABOUT = 6
    DELETED = 7
    CONDEMNED = 8
    PURGED = 9


class PackKind(IntEnum):
    """Which chunks a pack holds: files' data, or metadata (trees and content lists)."""

    DATA = 1
    TREE = 2


class Codec(IntEnum):
    """How a block's payload is packed before it is sealed."""

    RAW = 0
    ZSTD = 1


class BlockRecord(Struct, array_like=True, frozen=True):
    """One block as a table of contents names it. Offsets follow from the order: blocks stand back to back."""

    sealed: int  # bytes in the pack, tag included
    plain: int  # bytes when opened and decompressed
    codec: int
    ids: bytes  # chunk ids, 32 bytes each, in the order of the chunks in the block
    lengths: list[int]  # plain bytes of each chunk


class PackRecord(Struct, array_like=True, frozen=True):
    """All that a reader needs to know of a pack: its table of contents, where to find it and its salt."""

    id: bytes
    kind: int
    size: int  # bytes of the whole pack
    salt: bytes
    blocks: list[BlockRecord]


class Toc(Struct, array_like=True, frozen=True):
    """The table of contents inside a pack: what `PackRecord` has beyond the header and the name."""

    kind: int
    blocks: list[BlockRecord]


T = TypeVar("T")
_encode: Final = msgspec.msgpack.Encoder().encode
_toc_decoder: Final = msgspec.msgpack.Decoder(Toc)


def encode(value: Any) -> bytes:
    """Any struct of this format as msgpack."""
    return _encode(value)


def decode(data: bytes | memoryview, kind: type[T], name: str) -> T:
    """Decode and check against the type. `name` is for the error. Raises ObjectDamaged."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectDamaged(name, f"it does not parse ({error})") from None


def pad(payload: bytes, multiple: int) -> bytes:
    """Length prefix (u32 LE), payload, zeros up to a multiple of `multiple` bytes."""
    total = _LENGTH.size + len(payload)
    return _LENGTH.pack(len(payload)) + payload + bytes(-total % multiple)


def is_void_size(size: int) -> bool:
    """Whether an object of so many bytes, named as a point is, is a void."""
    return size % OBJECT_PADDING == (len(OBJECT_MAGIC) + 1 + SALT_BYTES + TAG_BYTES + len(VOID_ENDING)) % OBJECT_PADDING


def unpad(padded: bytes) -> bytes | None:
    """The payload, or None where the prefix does not fit."""
    if len(padded) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(padded)
    if length > len(padded) - _LENGTH.size:
        return None
    return padded[_LENGTH.size : _LENGTH.size + length]


def check_blocks(pack: PackId, size: int, blocks: list[BlockRecord]) -> None:
    """Raise PackDamaged unless the blocks are consistent with each other and fit a pack of `size` bytes."""
    offset = PACK_HEADER_BYTES
    if len(blocks) > MAX_BLOCKS_IN_PACK:
        raise PackDamaged(pack.hex(), 0, "it names too many blocks")
    for block in blocks:
        consistent = (
            0 < block.plain <= MAX_BLOCK_BYTES
            and TAG_BYTES < block.sealed <= block.plain + TAG_BYTES
            and len(block.ids) == CHUNK_ID_BYTES * len(block.lengths)
            and all(length >= 0 for length in block.lengths)
            and sum(block.lengths) == block.plain
            and block.codec in (Codec.RAW, Codec.ZSTD)
        )
        if not consistent:
            raise PackDamaged(pack.hex(), offset, "its table of contents contradicts itself")
        offset += block.sealed
    if offset + PACK_FOOTER.size > size:
        raise PackDamaged(pack.hex(), offset, "its table of contents names more bytes than it has")


def decode_toc(padded: bytes, pack: PackId) -> Toc:
    """Raises PackDamaged."""
    payload = unpad(padded)
    if payload is None:
        raise PackDamaged(pack.hex(), 0, "its table of contents is cut short")
    try:
        return _toc_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackDamaged(pack.hex(), 0, f"its table of contents does not parse ({error})") from None


def encode_header(what: str, identity: str, **more: Any) -> bytes:
    """The plain JSON header of a vault, a repository or a key slot."""
    header = {"format": what, "version": FORMAT_VERSION, "id": identity, "digest": _NO_DIGEST.decode(), **more}
    blank = json.dumps(header, indent=1, sort_keys=True).encode() + b"\n"
    return blank.replace(_NO_DIGEST, blake3(blank).hexdigest().encode(), 1)


def decode_header(data: bytes, what: str, name: str) -> dict[str, Any]:
    """Parse a plain header and refuse what this version does not know.

    Raises ObjectDamaged where it is no header of that kind, FormatTooNew where it is one from the future.
    """
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        raise ObjectDamaged(name, "it is not a header of backdrive") from None
    if not isinstance(header, dict) or header.get("format") != what:
        raise ObjectDamaged(name, f"it is not the header of a {what}")
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise ObjectDamaged(name, "its version is not a number")
    if version > FORMAT_VERSION:
        raise FormatTooNew(name, f"version {version}", f"up to version {FORMAT_VERSION}")
    check_features(header.get("features", []), name)
    digest = header.get("digest")
    if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST) or not digest.isascii():
        raise ObjectDamaged(name, "its digest does not parse")
    if blake3(data.replace(digest.encode(), _NO_DIGEST, 1)).hexdigest() != digest:
        raise ObjectDamaged(name, "its digest does not match: it is not what was written")
    return header


def check_features(features: Any, name: str) -> None:
    """Raise FormatTooNew when an object needs a feature that this version lacks."""
    if not isinstance(features, list) or not all(isinstance(feature, str) for feature in features):
        raise ObjectDamaged(name, "its feature list does not parse")
    unknown = sorted(set(features) - KNOWN_FEATURES)
    if unknown:
        raise FormatTooNew(name, f"features {', '.join(unknown)}", "none of them")
