"""The parameters of a repository: fixed when it is created, sealed in its header. `cas/FORMAT.md` says how they were
chosen.
"""

from __future__ import annotations

from msgspec import Struct

from cas.store.chunker import ChunkSizes


class Parameters(Struct, frozen=True):
    """Bytes, unless said otherwise. Only the chunk sizes matter to deduplication; the rest binds no reader."""

    chunk_minimum: int = 16 << 10
    chunk_average: int = 64 << 10
    chunk_maximum: int = 512 << 10
    chunk_normalization: int = 1
    small_block: int = 4 << 20  # for files that are one chunk: big, because neighbours compress together
    large_block: int = 1 << 20  # for the chunks of larger files
    dense_block: int = 512 << 10  # for data that does not compress: small, because random reads open whole blocks
    tree_block: int = 1 << 20
    pack: int = 16 << 20
    level: int = 3  # of zstd

    @property
    def chunk_sizes(self) -> ChunkSizes:
        """What the chunker wants."""
        return ChunkSizes(self.chunk_minimum, self.chunk_average, self.chunk_maximum, self.chunk_normalization)
