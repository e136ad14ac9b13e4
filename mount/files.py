"""Open files of a drive: which blocks hold a range of bytes, and reading them.

A read is answered from opened blocks; for what is read ahead, see `mount/ahead.py`. Files whose chunks have moved to
other packs meanwhile are found again.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import count
from typing import Final, NamedTuple

from cas.errors import CacheUnusable, ChunkMissing, ObjectMissing, TreeDamaged
from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.model import Node
from cas.store.content import FileContent
from cas.store.index import Location
from cas.store.missing import LOOKS
from cas.store.reader import Reader
from mount.ahead import Prefetcher, Streams
from mount.nodes import Directory
from mount.pages import MustWait

_WINDOW_BITS: Final = 18  # the chunks of a file are looked up for 256 KiB at a time
_RUNS_MOST: Final = 1 << 15  # kept for all files; about 300 bytes each
_SMALL: Final = 2 << 20  # bytes; files up to here are read as their neighbours are, larger ones by themselves
_OPEN_FILES: Final = 512  # kept by inode


class Run(NamedTuple):
    """A run of a file's bytes that lie together in one block."""

    start: int  # in the file
    end: int
    chunk: ChunkId  # the first one: for messages
    pack: int
    block: int
    offset: int  # in the plain block, of the byte at `start`


class Windows:
    """Where the bytes of open files lie, in windows of one size; the latest used are kept. Thread safe."""

    def __init__(self) -> None:
        self._most = _RUNS_MOST
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[int, int], list[Run]] = OrderedDict()
        self._runs = 0
        self._numbers = count(1)

    def number(self) -> int:
        """A number by which a file keeps its windows apart."""
        return next(self._numbers)

    def get(self, key: tuple[int, int]) -> list[Run] | None:
        """The window of (number of the file, number of the window), where it is kept."""
        with self._lock:
            window = self._windows.get(key)
            if window is not None:
                self._windows.move_to_end(key)
            return window

    def add(self, key: tuple[int, int], window: list[Run]) -> None:
        """Keep a window."""
        with self._lock:
            if key in self._windows:
                return
            self._windows[key] = window
            self._runs += len(window) + 1
            while self._runs > self._most and len(self._windows) > 1:
                self._runs -= len(self._windows.popitem(last=False)[1]) + 1


class OpenFile:
    """One open file, or one open alternate data stream. Thread safe."""

    __slots__ = ("_reader", "size")

    def __init__(self, reader: Reader, size: int) -> None:
        self.size: Final = size
        self._reader = reader

    def close(self) -> None:
        """Done with it. Nothing is held that would have to be given back."""

    def read(self, offset: int, size: int, *, wait: bool = True) -> bytes | memoryview:
        """The bytes from `offset`, fewer than `size` only where the file ends. A view stays valid while it is held.

        Raises MustWait, ChunkMissing, PackDamaged, TreeDamaged, CacheUnusable and the vault's errors.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        try:
            return self._read(offset, end, wait)
        except (ChunkMissing, CacheUnusable):
            if not wait:
                raise MustWait from None
            return self._read_afresh(offset, end)

    def _read_afresh(self, offset: int, end: int) -> bytes | memoryview:
        """Read what was not where this file thought, nor perhaps where the index says."""
        error: ChunkMissing | CacheUnusable
        for _ in range(LOOKS):
            generation = self._reader.generation
            self._forget()
            try:
                return self._read(offset, end, True)
            except (ChunkMissing, CacheUnusable) as caught:
                error = caught
            if not self._reader.look_again(error, generation):
                raise error
        self._reader.looked_in_vain(error)
        raise error

    def _read(self, offset: int, end: int, wait: bool) -> bytes | memoryview:
        """As `read`, of a range that is not empty and inside the file."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Where the bytes were is out of date."""
        raise NotImplementedError

    def _block(self, chunk: ChunkId, pack: int, block: int, wait: bool) -> memoryview:
        """The opened block that a chunk is in."""
        if not wait:
            opened = self._reader.peek_block(pack, block)
            if opened is None:
                raise MustWait
            return opened
        try:
            return self._reader.block(pack, block)
        except ObjectMissing as error:
            raise ChunkMissing(chunk, f"its pack {error.name} is gone") from error


class ChunkFile(OpenFile):
    """A file that is one chunk, as small files are: read as its neighbours are, in the order of the packs."""

    __slots__ = ("_chunk", "_location", "_prefetcher")

    def __init__(self, reader: Reader, node: Node, prefetcher: Prefetcher) -> None:
        """`node` is one for which `is_one_chunk` is true."""
        super().__init__(reader, node.size)
        self._chunk = ChunkId(node.content)
        self._prefetcher = prefetcher
        self._location: Location | None = None

    def _read(self, offset: int, end: int, wait: bool) -> bytes | memoryview:
        location = self._location
        if location is None:
            location = self._reader.find(self._chunk)
            if location is None:
                raise ChunkMissing(self._chunk)
            if location.length != self.size:
                raise TreeDamaged(self._chunk, "a file has another length than its chunk")
            self._location = location
        pack, number, place, _ = location
        block = self._block(self._chunk, pack, number, wait)
        self._prefetcher.walk(pack, number, len(block), place + offset, place + end)
        return block[place + offset : place + end]

    def _forget(self) -> None:
        self._location = None


def is_one_chunk(node: Node) -> bool:
    """Whether a file's node names one chunk that is the whole of it."""
    return (
        len(node.content) == CHUNK_ID_BYTES and node.depth == 0 and (node.extra is None or node.extra.extents is None)
    )


class LongFile(OpenFile):
    """A file of any number of chunks, and of holes."""

    __slots__ = ("_content", "_deep", "_number", "_prefetcher", "_streams", "_windows")

    def __init__(
        self, reader: Reader, content: FileContent, depth: int, prefetcher: Prefetcher, windows: Windows
    ) -> None:
        """`depth` is the node's: with 0, the chunks are known without reading any list."""
        super().__init__(reader, content.size)
        self._content = content
        self._deep = depth > 0
        self._prefetcher = prefetcher
        self._windows = windows
        self._number = windows.number()
        self._streams = Streams() if content.size > _SMALL else None

    def _read(self, offset: int, end: int, wait: bool) -> bytes | memoryview:
        parts: list[bytes | memoryview] = []
        position = offset
        for run in self.runs(offset, end, wait):
            low, high = max(run.start, offset), min(run.end, end)
            if low > position:
                parts.append(bytes(low - position))  # a hole
            block = self._block(run.chunk, run.pack, run.block, wait)
            first = run.offset + low - run.start
            parts.append(block[first : first + high - low])
            position = high
            if self._streams is None:
                self._prefetcher.walk(run.pack, run.block, len(block), first, first + high - low)
        if position < end:
            parts.append(bytes(end - position))
        if self._streams is not None:
            self._prefetcher.read(self, self._streams, offset, end)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _forget(self) -> None:
        self._number = self._windows.number()

    # --- where the bytes are ---

    def runs(self, start: int, end: int, wait: bool) -> list[Run]:
        """The runs that overlap [start, end), in order; what none of them covers is a hole."""
        end = min(end, self.size)
        if start >= end:
            return []
        first, last = start >> _WINDOW_BITS, end - 1 >> _WINDOW_BITS
        if first == last:
            return _overlapping(self._window(first, wait), start, end)
        found: list[Run] = []
        for number in range(first, last + 1):
            for run in _overlapping(self._window(number, wait), start, end):
                if found and _continues(found[-1], run):
                    found[-1] = found[-1]._replace(end=run.end)
                else:
                    found.append(run)
        return found

    def _window(self, number: int, wait: bool) -> list[Run]:
        key = (self._number, number)
        window = self._windows.get(key)
        if window is None:
            window = self._look_up(number, wait)
            self._windows.add(key, window)
        return window

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
            if runs and _continues(runs[-1], run):
                runs[-1] = runs[-1]._replace(end=run.end)
            else:
                runs.append(run)
        return runs


class OpenFiles:
    """The files read lately, by inode: for kernels that read without opening. Thread safe.

    What a point holds never changes, so a file may be dropped at any time: the next read opens it again.
    """

    def __init__(self) -> None:
        self._most = _OPEN_FILES
        self._lock = threading.Lock()
        self._files: OrderedDict[int, tuple[Directory | None, OpenFile]] = OrderedDict()

    def get(self, inode: int, directory: Directory | None) -> OpenFile | None:
        """The file where it is kept; `directory` is the one that its number lies in now."""
        with self._lock:
            kept = self._files.get(inode)
            if kept is None or kept[0] is not directory:
                return None  # in theory another directory may have got the number of one that was forgotten
            self._files.move_to_end(inode)
            return kept[1]

    def add(self, inode: int, directory: Directory | None, file: OpenFile) -> None:
        """Keep a file."""
        with self._lock:
            self._files[inode] = (directory, file)
            self._files.move_to_end(inode)
            while len(self._files) > self._most:
                self._files.popitem(last=False)


def _overlapping(runs: list[Run], start: int, end: int) -> list[Run]:
    index = max(bisect_right(runs, start, key=_start_of) - 1, 0)
    if index < len(runs) and runs[index].end <= start:
        index += 1
    after = index
    while after < len(runs) and runs[after].start < end:
        after += 1
    return runs[index:after]


def _start_of(run: Run) -> int:
    return run.start


def _continues(last: Run, run: Run) -> bool:
    """Whether a run lies right behind another, in the file and in the same block."""
    return (
        run.start == last.end
        and (run.pack, run.block) == (last.pack, last.block)
        and run.offset == last.offset + last.end - last.start
    )
