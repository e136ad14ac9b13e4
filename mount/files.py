"""Open files of a drive: which blocks hold a range of bytes, and reading ahead for those who read in sequence.

A read is answered from opened blocks; a reader that goes on where it stopped has the next blocks opened by background
threads, so that it hardly ever waits. Random reads open only the block that they need.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from cas.errors import BackdriveError, CacheUnusable, ChunkMissing, ObjectMissing, TreeDamaged
from cas.ids import ChunkId
from cas.store.content import FileContent
from cas.store.reader import Reader
from mount.pages import MustWait

_WINDOW_BITS: Final = 23  # the chunks of a file are looked up for 8 MiB at a time
_WINDOWS: Final = 4  # kept by an open file
_SEQUENCE: Final = 2  # reads in a row before anything is read ahead
_SLACK: Final = 2 << 20  # bytes by which requests of one sequential reader may overtake each other
_AHEAD: Final = 8 << 20  # bytes
_STEP: Final = 1 << 20  # bytes; how often to look ahead
_THREADS: Final = 2  # opening a block is decryption for the most part; more would only starve the event loop
_MOST_IN_FLIGHT: Final = 24  # blocks asked for and not yet opened; more are not asked for


class Run(NamedTuple):
    """A run of a file's bytes that lie together in one block."""

    start: int  # in the file
    end: int
    chunk: ChunkId  # the first one: for messages
    pack: int
    block: int
    offset: int  # in the plain block, of the byte at `start`


class Prefetcher:
    """Opens blocks in the background, for all open files of a drive. Thread safe."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._in_flight: set[tuple[int, int]] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ahead")

    def look_ahead(self, file: OpenFile, start: int, end: int) -> None:
        """Open the blocks that hold a range of the file, some time soon, or not: it is only a favour."""
        try:
            self._threads.submit(self._plan, file, start, end)
        except RuntimeError:
            pass  # the drive is closing

    def _plan(self, file: OpenFile, start: int, end: int) -> None:
        try:
            runs = file.runs(start, end, wait=True)
        except BackdriveError:
            return  # whoever reads there will learn of it
        for run in runs:
            key = (run.pack, run.block)
            with self._lock:
                if self._closed or file.closed or len(self._in_flight) >= _MOST_IN_FLIGHT:
                    return
                if key in self._in_flight:
                    continue
                self._in_flight.add(key)
            try:
                self._threads.submit(self._open, key)
            except RuntimeError:
                return

    def _open(self, key: tuple[int, int]) -> None:
        try:
            if self._reader.peek_block(*key) is None and not self._closed:
                self._reader.block(*key)
        except BackdriveError:
            pass  # as above
        finally:
            with self._lock:
                self._in_flight.discard(key)

    def close(self) -> None:
        """Ask for nothing more; what is under way may end by itself."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)


class OpenFile:
    """One open file, or one open alternate data stream. Thread safe."""

    def __init__(self, reader: Reader, content: FileContent, depth: int, prefetcher: Prefetcher) -> None:
        """`depth` is the node's: with 0, the chunks are known without reading any list."""
        self.size: Final = content.size
        self.closed = False
        self._reader = reader
        self._content = content
        self._deep = depth > 0
        self._prefetcher = prefetcher
        self._lock = threading.Lock()
        self._windows: dict[int, list[Run]] = {}
        self._next = 0  # where a sequential reader would go on
        self._sequence = 0
        self._asked = 0  # up to where blocks have been asked for

    def close(self) -> None:
        """Done with it."""
        self.closed = True

    def read(self, offset: int, size: int, *, wait: bool = True) -> bytes | memoryview:
        """The bytes from `offset`, fewer than `size` only where the file ends.

        Raises MustWait, ChunkMissing, PackDamaged, TreeDamaged, CacheUnusable and the vault's errors.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        try:
            return self._read(offset, end, wait)
        except CacheUnusable:
            # The index may have been made anew since this file's blocks were looked up: look again, once.
            if not wait:
                raise MustWait from None
            with self._lock:
                self._windows.clear()
            return self._read(offset, end, wait)

    def _read(self, offset: int, end: int, wait: bool) -> bytes | memoryview:
        parts: list[bytes | memoryview] = []
        position = offset
        for run in self.runs(offset, end, wait):
            low, high = max(run.start, offset), min(run.end, end)
            if low > position:
                parts.append(bytes(low - position))  # a hole
            first = run.offset + low - run.start
            parts.append(memoryview(self._block(run, wait))[first : first + high - low])
            position = high
        if position < end:
            parts.append(bytes(end - position))
        self._look_ahead(offset, end)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _block(self, run: Run, wait: bool) -> bytes:
        if not wait:
            block = self._reader.peek_block(run.pack, run.block)
            if block is None:
                raise MustWait
            return block
        try:
            return self._reader.block(run.pack, run.block)
        except ObjectMissing as error:
            raise ChunkMissing(run.chunk, f"its pack {error.name} is gone") from None

    def _look_ahead(self, start: int, end: int) -> None:
        """Note a read, and have the next blocks opened where it goes on where the last one ended."""
        if abs(start - self._next) <= (_SLACK if self._sequence >= _SEQUENCE else 0):
            self._sequence += 1
            self._next = max(self._next, end)
        else:
            self._sequence = 0
            self._next = self._asked = end
        if self._sequence < _SEQUENCE or self._asked >= self.size:
            return
        if self._asked < self._next + _AHEAD - _STEP:
            begin, self._asked = max(self._asked, self._next), self._next + _AHEAD
            self._prefetcher.look_ahead(self, begin, self._asked)

    # --- where the bytes are ---

    def runs(self, start: int, end: int, wait: bool) -> list[Run]:
        """The runs that overlap [start, end), in order; what none of them covers is a hole."""
        end = min(end, self.size)
        found: list[Run] = []
        if start >= end:
            return found
        for number in range(start >> _WINDOW_BITS, (end - 1 >> _WINDOW_BITS) + 1):
            window = self._windows.get(number)
            if window is None:
                window = self._look_up(number, wait)
            index = max(bisect_right(window, start, key=_start_of) - 1, 0)
            while index < len(window) and window[index].start < end:
                if window[index].end > start:
                    found.append(window[index])
                index += 1
        return found

    def _look_up(self, number: int, wait: bool) -> list[Run]:
        if self._deep and not wait:
            raise MustWait  # content lists may have to be fetched
        first = number << _WINDOW_BITS
        pieces = list(self._content.pieces(first, first + (1 << _WINDOW_BITS)))
        runs: list[Run] = []
        locations = self._reader.find_many([piece.chunk for piece in pieces])
        for piece, location in zip(pieces, locations, strict=True):
            if location is None:
                raise ChunkMissing(piece.chunk)
            pack, block, offset, length = location
            if length != piece.chunk_length:
                raise TreeDamaged(piece.chunk, "a content list records another length than the chunk has")
            run = Run(piece.offset, piece.offset + piece.length, piece.chunk, pack, block, offset + piece.skip)
            last = runs[-1] if runs else None
            if last is not None and _continues(last, run):
                runs[-1] = last._replace(end=run.end)
            else:
                runs.append(run)
        with self._lock:
            while len(self._windows) >= _WINDOWS:
                del self._windows[next(iter(self._windows))]
            self._windows[number] = runs
        return runs


def _start_of(run: Run) -> int:
    return run.start


def _continues(last: Run, run: Run) -> bool:
    """Whether a run lies right behind another, in the file and in the same block."""
    return (
        run.start == last.end
        and (run.pack, run.block) == (last.pack, last.block)
        and run.offset == last.offset + last.end - last.start
    )
