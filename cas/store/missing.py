"""What to do when a chunk is not where the index says, or in no index segment: others may have moved it meanwhile.

Collect writes what is still needed into new packs and deletes the old ones. Whoever reads on brings its index up to
date and looks again; only what is missing then is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Final

LOOKS: Final = 3  # at the same thing, in one attempt to read it
_PAUSE: Final = 2.0  # seconds between two updates
_VAIN: Final = 30.0  # seconds for which a chunk that was not found is not looked for again
_VAIN_MOST: Final = 1024

Refresh = Callable[[], Collection[bytes] | None]
"""Brings the index up to date. Returns the ids of the packs that it names though they are gone, where it knows them."""


class SecondLook:
    """Brings the index up to date for readers that miss something. Thread safe."""

    def __init__(
        self,
        refresh: Refresh | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """One thread at a time calls `refresh`. None: nothing ever moves."""
        self.generation = 0  # how many times it was brought up to date: read it before looking something up
        self._refresh = refresh
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()  # of nothing but this: who does not miss anything never waits for it
        self._last = -_PAUSE
        self._lost: frozenset[str] = frozenset()  # packs, by their ids in hex
        self._vain: dict[str, float] = {}

    def for_pack(self, pack: str, generation: int) -> bool:
        """Whether to look up a chunk again whose pack, by its id in hex, is gone. It was looked up at `generation`.

        Raises what `refresh` does.
        """
        return self._is_worth_it(pack, generation, patient=True)

    def for_chunk(self, chunk: str, generation: int) -> bool:
        """Whether to look again for a chunk, by its id in hex, that no segment named at `generation`. As `for_pack`."""
        return self._is_worth_it(chunk, generation, patient=False)

    def _is_worth_it(self, thing: str, generation: int, patient: bool) -> bool:
        if self._refresh is None:
            return False
        with self._lock:
            if self.generation != generation:
                return True
            if thing in self._lost or self._clock() - self._vain.get(thing, -_VAIN) < _VAIN:
                return False
            wait = self._last + _PAUSE - self._clock()
            if wait > 0 and not patient:
                return False  # segments come before points: there is none that was not there a moment ago
            if wait > 0:
                self._sleep(wait)
            try:
                lost = self._refresh()
            finally:
                self._last = self._clock()
            self._lost = frozenset(pack.hex() for pack in lost or ())
            self.generation += 1
            return True

    def was_in_vain(self, thing: str) -> None:
        """It is missing all the same."""
        with self._lock:
            if len(self._vain) >= _VAIN_MOST:
                self._vain.clear()
            self._vain[thing] = self._clock()
