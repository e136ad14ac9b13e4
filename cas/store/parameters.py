"""The parameters of a repository: fixed when it is created, sealed in its header.

`cas/FORMAT.md` says how the defaults were chosen.
"""

from __future__ import annotations

from msgspec import Struct

from cas.store.chunker import ChunkSizes

NO_LIMIT = 0


class Parameters(Struct, frozen=True):
    """Bytes, unless said otherwise. The chunk sizes decide what deduplicates; no reader depends on any of it."""

    single_most: int = 256 << 10  # a file up to here is one chunk
    # (files up to so many bytes, average chunk): small chunks where changes in place are likely to be small against the
    # file, larger ones where there would be too many. The last tier has no limit.
    tiers: tuple[tuple[int, int], ...] = (
        (1 << 30, 8 << 10),
        (16 << 30, 32 << 10),
        (256 << 30, 128 << 10),
        (NO_LIMIT, 512 << 10),
    )
    # Files that do not compress (media, archives) hardly ever change in place: no average below this one.
    dense_average: int = 64 << 10
    normalization: int = 2  # of FastCDC
    small_block: int = 4 << 20  # for files that fit one reading: big, because neighbours compress together
    large_block: int = 1 << 20  # for the chunks of larger files
    dense_block: int = 512 << 10  # for data that does not compress: small, because random reads open whole blocks
    tree_block: int = 1 << 20
    pack: int = 16 << 20
    level: int = 3  # of zstd

    def average(self, size: int, dense: bool) -> int:
        """The average chunk of a file of `size` bytes."""
        average = next(average for most, average in self.tiers if most == NO_LIMIT or size <= most)
        return max(average, self.dense_average) if dense else average

    def chunk_sizes(self, average: int) -> ChunkSizes:
        """The shape around an average."""
        return ChunkSizes(average // 8, average, average * 8, self.normalization)
