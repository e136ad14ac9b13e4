"""A reader of the vault format that knows nothing but `cas/FORMAT.md`: not one line of backdrive is imported here.

That page has to be enough for a stranger whose only copy of backdrive was in the backup. This is the stranger's
program; the numbers in brackets are sections of the page. It favours being short over being fast, and trusts nothing
that it has not opened with a key or compared with an id.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from argon2.low_level import Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import msgpack

OBJECT_KINDS = {1: "INDEX", 2: "POINT", 3: "MACHINE", 4: "SESSION", 5: "PARAMETERS", 6: "KEY_ABOUT"}  # [1, 2, 3]
DATA, TREE = 1, 2  # [5]
PACK_KINDS = {DATA: "DATA", TREE: "TREE"}  # [3, 5]
FILE, DIRECTORY, LINK = 0, 1, 2  # [7]
ENTRY = struct.Struct("<32sQ")  # [6]


class BadVault(Exception):
    """The vault is not as `cas/FORMAT.md` says."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: a block of a pack, and in the plain block a stretch. [5]"""

    pack: str
    kind: int
    salt: bytes
    number: int
    codec: int
    plain: int
    start: int  # of the sealed block in the pack
    sealed: int
    offset: int  # of the chunk in the plain block
    length: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What a vault tells of one file, directory or other thing. [7]"""

    path: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes | None = None
    device: tuple[int, int] | None = None
    links: int = 1
    sha256: str | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    chunks: tuple[bytes, ...] = ()


def _check(fact: bool, complaint: str) -> None:
    if not fact:
        raise BadVault(complaint)


def _header(raw: bytes, format_name: str) -> dict[str, Any]:
    """A header of JSON, its digest compared, its version and features known. [2]"""
    header: dict[str, Any] = json.loads(raw)
    digest = header["digest"].encode()
    _check(blake3(raw.replace(digest, b"0" * 64)).hexdigest().encode() == digest, "a header is damaged")
    _check(header["format"] == format_name and header["version"] <= 1, f"not a {format_name} of version 1")
    _check(not header.get("features"), "a header names features that came later")
    return header


def _unpadded(padded: bytes, multiple: int) -> bytes:
    """What stands after its own length and before zeros. [4, 5]"""
    (length,) = struct.unpack_from("<I", padded)
    _check(len(padded) % multiple == 0 and not any(padded[4 + length :]), "wrong padding")
    return padded[4 : 4 + length]


class Reader:
    """One repository of a vault in a directory, opened with a passphrase."""

    def __init__(self, vault: Path, passphrase: str) -> None:
        self.vault = vault
        _header(self.get("vault.json"), "backdrive vault")
        self.base = "repositories/" + self.names("repositories")[0]
        self._secret = self._unlock(passphrase)
        name = f"{self.base}/repository.json"
        sealed = _header(self.get(name), "backdrive repository")["sealed"]
        self.parameters: dict[str, Any] = self.open_object(bytes.fromhex(sealed), 5, name)
        self.chunk_keys = {DATA: self.derive("chunk id"), TREE: self.derive("metadata id")}
        self.chunker_seed = int.from_bytes(self.derive("chunker seed")[:8], "little") >> 1 | 1  # [3]
        self.table: dict[bytes, Place] = {}
        self._blocks: dict[tuple[str, int], bytes] = {}

    # --- objects and keys ---------------------------------------------------------------------------------------------

    def get(self, name: str) -> bytes:
        return (self.vault / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        place = self.vault / folder
        return sorted(path.name for path in place.iterdir()) if place.exists() else []

    def derive(self, what: str) -> bytes:
        """A key of the repository. [3]"""
        return blake3(self._secret, derive_key_context="backdrive 2026-11 format 1 " + what).digest()

    def _unlock(self, passphrase: str) -> bytes:
        """The repository secret, from the first key slot that the passphrase opens. [3]"""
        for slot in self.names(f"{self.base}/keys"):
            name = f"{self.base}/keys/{slot}"
            header = _header(self.get(name), "backdrive key slot")
            passes, memory, lanes = header["passes"], header["memory_kib"], header["lanes"]
            _check(header["kdf"] == "argon2id" and passes <= 64 and memory <= 2 << 20 and lanes <= 64, "a hostile slot")
            salt = bytes.fromhex(header["salt"])
            key = hash_secret_raw(passphrase.encode(), salt, passes, memory, lanes, 32, Type.ID, 0x13)
            try:
                sealed = bytes.fromhex(header["sealed"])
                return AESGCM(key).decrypt(bytes(12), sealed, b"backdrive key slot " + name.encode())
            except InvalidTag:
                continue
        raise BadVault("no key slot opens with this passphrase")

    def open_object(self, sealed: bytes, kind: int, name: str) -> Any:
        """The payload of a sealed object. [4]"""
        _check(sealed[:8] == b"BKDOBJ\x01" + bytes([kind]), f"{name} is no object of kind {kind}")
        key = blake3(sealed[8:40], key=self.derive("object " + OBJECT_KINDS[kind])).digest()
        padded = AESGCM(key).decrypt(bytes(12), sealed[40:], bytes([kind]) + name.encode())
        payload = zstandard.ZstdDecompressor().decompressobj().decompress(_unpadded(padded, 256))
        return payload.decode() if OBJECT_KINDS[kind] == "KEY_ABOUT" else msgpack.decode(payload)

    # --- the chunk table, in two ways ---------------------------------------------------------------------------------

    def packs(self) -> Iterator[tuple[str, int]]:
        """Names and kinds of all packs. [1]"""
        for folder, kind in (("data", DATA), ("tree", TREE)):
            for prefix in self.names(f"{self.base}/{folder}"):
                for pack in self.names(f"{self.base}/{folder}/{prefix}"):
                    yield f"{self.base}/{folder}/{prefix}/{pack}", kind

    def load_tables_of_packs(self) -> None:
        """Learn where all chunks are from the packs themselves: the index is not needed. [5]"""
        self.table.clear()
        for name, kind in self.packs():
            pack = self.get(name)
            _check(pack[:8] == b"BKDPACK\x01" and pack[-4:] == b"TOC\x01", f"{name} is no pack")
            (length,) = struct.unpack("<I", pack[-8:-4])
            key, nonce = self._pack_key(kind, pack[8:40]), bytes(4) + b"\xff" * 8
            padded = AESGCM(key).decrypt(nonce, pack[-8 - length : -8], PACK_KINDS[kind].encode())
            kind_again, blocks = msgpack.decode(_unpadded(padded, 1024))[:2]
            _check(kind == kind_again, f"{name} is in the wrong folder")
            self._add_blocks(name, kind, pack[8:40], blocks, len(pack) - 8 - length)

    def load_index(self) -> None:
        """Learn the same from the index segments. [4]"""
        self.table.clear()
        for segment in self.names(f"{self.base}/index"):
            name = f"{self.base}/index/{segment}"
            for pack, kind, size, salt, blocks in self.open_object(self.get(name), 1, name):
                pack_name = f"{self.base}/{PACK_KINDS[kind].lower()}/{pack.hex()[:2]}/{pack.hex()}"
                _check((self.vault / pack_name).stat().st_size == size, f"{pack_name} is cut")
                self._add_blocks(pack_name, kind, salt, blocks)

    def _add_blocks(self, pack: str, kind: int, salt: bytes, blocks: list[Any], end: int | None = None) -> None:
        start = 40
        for number, (sealed, plain, codec, ids, lengths) in enumerate(blocks):
            offset = 0
            _check(len(ids) == 32 * len(lengths) and sum(lengths) == plain, "a block record contradicts itself")
            for index, length in enumerate(lengths):
                place = Place(pack, kind, salt, number, codec, plain, start, sealed, offset, length)
                self.table[ids[32 * index : 32 * index + 32]] = place
                offset += length
            start += sealed
        _check(end is None or start == end, f"the blocks of {pack} do not fill it")

    # --- chunks and contents ------------------------------------------------------------------------------------------

    def _pack_key(self, kind: int, salt: bytes) -> bytes:
        return blake3(salt, key=self.derive("pack " + PACK_KINDS[kind])).digest()

    def _block(self, at: Place) -> bytes:
        """A whole block, opened and decompressed. [5]"""
        if (block := self._blocks.get((at.pack, at.number))) is None:
            with (self.vault / at.pack).open("rb") as file:
                file.seek(at.start)
                sealed = file.read(at.sealed)
            bound = b"block" + struct.pack("<BBIQ", at.kind, at.codec, at.plain, at.number)
            nonce = struct.pack("<4xQ", at.number)
            block = AESGCM(self._pack_key(at.kind, at.salt)).decrypt(nonce, sealed, bound)
            if at.codec == 1:
                block = zstandard.ZstdDecompressor().decompress(block, max_output_size=at.plain)
            _check(at.codec <= 1 and len(block) == at.plain <= 32 << 20, "a block of unknown codec or wrong length")
            if len(self._blocks) >= 16:
                self._blocks.clear()
            self._blocks[at.pack, at.number] = block
        return block

    def chunk(self, chunk_id: bytes, kind: int) -> bytes:
        """The bytes of a chunk, which its id is made of. [6]"""
        at = self.table[chunk_id]
        data = self._block(at)[at.offset : at.offset + at.length]
        _check(
            at.kind == kind and blake3(data, key=self.chunk_keys[kind]).digest() == chunk_id, "a chunk has another id"
        )
        return data

    def chunk_ids(self, content: bytes, depth: int) -> Iterator[bytes]:
        """Ids of the chunks of a content reference, in order. [6]"""
        if depth == 0 and len(content) == 32:
            yield content
            return
        for chunk_id, length in ENTRY.iter_unpack(content):
            below = list(self.chunk_ids(self.chunk(chunk_id, TREE), depth - 1)) if depth else [chunk_id]
            _check(length == sum(self.table[one].length for one in below), "a content list tells wrong lengths")
            yield from below

    def _digest(self, chunks: tuple[bytes, ...], size: int, extents: list[list[int]] | None) -> str:
        """SHA-256 of a file, the holes of a sparse one filled with zeros. [6, 7]"""
        data = b"".join(self.chunk(chunk_id, DATA) for chunk_id in chunks)
        whole, read = bytearray(size), 0
        for offset, length in [[0, size]] if extents is None else extents:
            whole[offset : offset + length] = data[read : read + length]
            read += length
        _check(read == len(data) and len(whole) == size, "a file has more or fewer bytes than it should")
        return hashlib.sha256(whole).hexdigest()

    # --- points and trees ---------------------------------------------------------------------------------------------

    def points(self) -> list[dict[str, Any]]:
        """All recovery points, the oldest first. [8]"""
        names = [f"{self.base}/points/{point}" for point in self.names(f"{self.base}/points")]
        points = [self.open_object(self.get(name), 2, name) for name in names]
        _check(not any(point.get("features") for point in points), "a point has features that came later")
        return sorted(points, key=lambda point: int(point["started"]))

    def _nodes(self, tree_id: bytes) -> Iterator[tuple[list[Any], list[Any]]]:
        """Nodes of a directory with their owners, of all its pages. [7]"""
        tree = self.chunk(tree_id, TREE)
        if tree[0] == 0:
            owners, nodes = msgpack.decode(tree[1:])[:2]
            yield from ((node, owners[node[3]]) for node in nodes)
            return
        for first_name, entries, page_id in msgpack.decode(tree[1:]):
            page = list(self._nodes(page_id))
            _check(page[0][0][0] == first_name and len(page) == entries, "a page is not what its parent says")
            yield from page

    def walk(self, tree_id: bytes, above: bytes = b"") -> Iterator[Entry]:
        """Every entry below a directory, parents first; paths are relative to that directory. [7]"""
        last = b""
        for node, owner in self._nodes(tree_id):
            name, kind, mode, _, size, mtime, _, _, content, depth, extra = node[:11]
            _check(last < name and name not in (b".", b"..") and not {0, 47} & set(name), "a wrong name")
            last, extra = name, extra or {}
            chunks = tuple(self.chunk_ids(content, depth)) if kind == FILE else ()
            yield Entry(
                path=above + name,
                kind=kind,
                mode=mode,
                uid=owner[0],
                gid=owner[1],
                mtime=mtime,
                size=size,
                target=content if kind == LINK else None,
                device=tuple(extra["r"]) if "r" in extra else None,
                links=extra["h"][1] if "h" in extra else 1,
                sha256=self._digest(chunks, size, extra.get("s")) if kind == FILE else None,
                xattrs=extra.get("x", {}),
                chunks=chunks,
            )
            if kind == DIRECTORY:
                yield from self.walk(content, above + name + b"/")
