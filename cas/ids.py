"""Identifiers. Each is a distinct type, so that mypy refuses one where another is meant."""

from __future__ import annotations

from typing import NewType

ChunkId = NewType("ChunkId", bytes)
"""32 bytes: BLAKE3 of the chunk, keyed with the repository's chunk-id key."""

PackId = NewType("PackId", bytes)
"""32 bytes: plain BLAKE3 of the whole pack, so that anyone can scrub a vault."""

PointId = NewType("PointId", str)
"""32 lower-case hex digits, random."""

MachineId = NewType("MachineId", str)
"""32 lower-case hex digits, random."""

RepositoryId = NewType("RepositoryId", str)
"""32 lower-case hex digits, random."""

CHUNK_ID_BYTES = 32
PACK_ID_BYTES = 32
POINT_ID_BYTES = 16

Bytes = bytes | bytearray | memoryview
"""What the engine takes where the buffer may be reused after the call."""
