"""Content-defined chunking: bytes in, cut points out. No files, no clock, no threads.

FastCDC (Xia et al., USENIX ATC 2016) by pyfastcdc, with a gear table that the repository's seed changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyfastcdc

from cas.errors import BackdriveError
from cas.ids import Bytes


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Bytes. `normalization` is FastCDC's level, 0 to 3."""

    minimum: int
    average: int
    maximum: int
    normalization: int


class Chunker:
    """Cuts buffers. The same content gives the same chunks wherever a file starts with it. Thread safe."""

    def __init__(self, sizes: ChunkSizes, seed: int) -> None:
        if pyfastcdc.FastCDC.__module__.startswith("pyfastcdc.py."):
            raise BackdriveError(
                "The compiled part of pyfastcdc is missing, and its pure-Python fallback is a hundred times too slow.",
                "Install pyfastcdc from a wheel, or with a C compiler at hand.",
            )
        self.sizes = sizes
        self._cdc = pyfastcdc.FastCDC(
            sizes.average,
            min_size=sizes.minimum,
            max_size=sizes.maximum,
            normalized_chunking=sizes.normalization,  # type: ignore[arg-type]  # a Literal there, a number here
            seed=seed,
        )

    def cuts(self, data: Bytes, final: bool) -> list[int]:
        """End offsets of the chunks in `data`, ascending.

        Unless `final`, what follows the last cut is the start of a chunk whose end is not seen yet: hand it in again,
        in front of what follows. `data` that is not final and shorter than the largest chunk may give no cut at all.
        """
        ends = [chunk.offset + chunk.length for chunk in self._cdc.cut_buf(data)]
        if not final and ends:
            ends.pop()
        return ends
