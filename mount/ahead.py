"""Reading ahead: which blocks will be wanted soon, opened in the background with bounded memory.

Two kinds of readers are told from those who jump about. Who reads on in a large file has the blocks of the bytes that
follow opened. Who reads one small file after the other walks through the blocks in which backup wrote them, one behind
the other, and has the next blocks opened before the files in them are asked for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from cas.errors import BackdriveError
from cas.store.reader import Reader

if TYPE_CHECKING:
    from mount.files import LongFile

_THREADS: Final = 4  # for vaults that are far away; for near ones, one or four made no difference
_QUEUE_MOST: Final = 64  # things to do; more are not taken on
_TOGETHER: Final = 4  # blocks of a large file that one read of the vault fetches
_READERS: Final = 8  # remembered, of one file or walking through packs
_CERTAIN: Final = 2  # reads in a row before anything is read ahead
_LARGE_REQUEST: Final = 128 << 10  # bytes; what a kernel that reads ahead asks for, perhaps not in order
_SLACK: Final = 4 << 20  # bytes by which such requests of a reader whom we know may overtake each other
_FIRST_WINDOW: Final = 2 << 20  # bytes
_WINDOW_MOST: Final = 16 << 20
_WINDOW_LEAST: Final = 1 << 20
_WALK_MOST: Final = 3  # blocks ahead of a walk
_STEP_MOST: Final = 3  # blocks, or packs, that one step of a walk goes at the most
_ACTIVE: Final = 1.0  # seconds after which a reader that asks for nothing leaves its share to the others


class Stream:
    """One reader of a large file who reads on where it stopped."""

    __slots__ = ("asked", "count", "next", "window")

    def __init__(self, end: int) -> None:
        self.next = end  # where it would go on
        self.count = 0
        self.asked = end  # up to where blocks have been asked for
        self.window = _FIRST_WINDOW


class Streams:
    """The readers of one large file. What two threads note at once may be lost: it is only about being faster."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def note(self, start: int, end: int) -> Stream | None:
        """A read of [start, end): the reader, where it is known to read on."""
        streams = self._streams
        size = end - start
        for place, stream in enumerate(streams):
            slack = 0
            if size >= _LARGE_REQUEST:
                slack = _SLACK if stream.count >= _CERTAIN else 2 * size
            if abs(start - stream.next) <= slack:
                if place:
                    streams.insert(0, streams.pop(place))
                stream.count += 1
                stream.next = max(stream.next, end)
                return stream if stream.count >= _CERTAIN else None
        streams.insert(0, Stream(end))
        del streams[_READERS:]
        return None


class Walk:
    """A reader that goes through small files in about the order of the packs.

    About, for the blocks of a pack lie in the order in which threads were done with them.
    """

    __slots__ = ("block", "front_block", "front_pack", "high", "length", "pack", "size")

    def __init__(self, pack: int, block: int, size: int) -> None:
        self.pack = pack
        self.block = block
        self.size = size  # of the block, in bytes
        self.high = 0  # up to where the block was read
        self.front_pack = pack  # the furthest block
        self.front_block = block
        self.length = 0  # blocks gone through

    def goes_on(self, pack: int, block: int, size: int, low: int) -> bool:
        """Whether a read at `low` in another block is the next step: from an end to a beginning, not far away."""
        if 2 * self.high < self.size or 4 * low > size:
            return False
        if pack == self.front_pack:
            return abs(block - self.front_block) <= _STEP_MOST
        if pack > self.front_pack:
            return pack - self.front_pack <= _STEP_MOST and block < _STEP_MOST
        return self.front_pack - pack <= _STEP_MOST and self.front_block < _STEP_MOST

    def step(self, pack: int, block: int, size: int) -> None:
        """It goes on there."""
        self.pack, self.block, self.size, self.high = pack, block, size, 0
        self.length += 1
        self.front_pack, self.front_block = max((self.front_pack, self.front_block), (pack, block))


class Prefetcher:
    """Opens blocks in the background, for all files of a drive. Thread safe."""

    def __init__(self, reader: Reader, threads: int = _THREADS) -> None:
        self._reader = reader
        self._share = reader.cache_bytes * 3 // 8  # half of what data has
        self._lock = threading.Lock()
        self._active: dict[int, float] = {}  # readers, and when they asked last
        self._walks: list[Walk] = []
        self._most_threads = threads
        self._threads: list[threading.Thread] = []
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False

    # --- readers ---

    def read(self, file: LongFile, streams: Streams, start: int, end: int) -> None:
        """Note a read of [start, end) of a large file; have what follows opened where the reader reads on."""
        stream = streams.note(start, end)
        if stream is None or stream.asked >= file.size:
            return
        window = min(stream.window, self._window(stream))
        if stream.asked - stream.next > window - max(window // 4, _WINDOW_LEAST // 2):
            return
        begin, stream.asked = max(stream.asked, stream.next), stream.next + window
        stream.window = min(2 * window, _WINDOW_MOST)
        if begin < stream.asked:
            self._submit(partial(self._plan, file, begin, stream.asked))

    def walk(self, pack: int, block: int, size: int, low: int, high: int) -> None:
        """Note a read of a small file, [low, high) of a data block of `size` bytes."""
        walks = self._walks
        found = None
        for walk in walks:
            if walk.block == block and walk.pack == pack:
                walk.high = max(walk.high, high)
                return
            if found is None and walk.goes_on(pack, block, size, low):
                found = walk
        if found is None:
            found = Walk(pack, block, size)
            walks.insert(0, found)
            del walks[_READERS:]
        else:
            before = found.front_pack, found.front_block
            found.step(pack, block, size)
            self._submit(partial(self._follow, *before, self._window(found), min(found.length, _WALK_MOST) + 1))
        found.high = high

    def _window(self, reader: object) -> int:
        """How far ahead a reader may go, in bytes: all of them together stay within a share of the cache."""
        now = time.monotonic()
        with self._lock:
            self._active[id(reader)] = now
            if len(self._active) > 1:
                self._active = {key: asked for key, asked in self._active.items() if now - asked < _ACTIVE}
            return max(min(self._share // len(self._active), _WINDOW_MOST), _WINDOW_LEAST)

    # --- in the background ---

    def _submit(self, work: Callable[[], None]) -> None:
        if self._closed or self._work.qsize() >= _QUEUE_MOST:
            return
        if len(self._threads) < self._most_threads:
            with self._lock:
                if len(self._threads) < self._most_threads:
                    thread = threading.Thread(target=self._loop, name="ahead", daemon=True)
                    self._threads.append(thread)
                    thread.start()
        self._work.put(work)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                if not self._closed:
                    work()
            except BackdriveError:
                pass  # whoever reads there will learn of it

    def _plan(self, file: LongFile, start: int, end: int) -> None:
        """Have the blocks that hold [start, end) of a file opened."""
        first = last = pack = -1
        for run in file.runs(start, end, wait=True):
            if run.pack == pack and (run.block == last or (run.block == last + 1 and last - first + 1 < _TOGETHER)):
                last = run.block
                continue
            self._open_later(pack, first, last)
            pack, first, last = run.pack, run.block, run.block
        self._open_later(pack, first, last)

    def _follow(self, pack: int, block: int, size: int, most: int) -> None:
        """Have what was written behind a block opened: blocks of several MiB, one by one."""
        for number, first, last in self._reader.following(pack, block, size, most):
            for each in range(first, last + 1):
                self._open_later(number, each, each)

    def _open_later(self, pack: int, first: int, last: int) -> None:
        if first >= 0:
            self._submit(partial(self._open, pack, first, last))

    def _open(self, pack: int, first: int, last: int) -> None:
        while first <= last and not self._closed:
            first = self._reader.open_ahead(pack, first, last)

    def close(self) -> None:
        """Ask for nothing more; what is under way may end by itself."""
        self._closed = True
        for _ in self._threads:
            self._work.put(None)
