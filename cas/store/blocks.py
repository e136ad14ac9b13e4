"""Opened blocks in memory: bounded in bytes, in buffers that are used again and again.

Memory that comes fresh from the system costs several times as much as decryption does, so a block that is forgotten
gives its buffer to a new one. Never while somebody still holds a view of it: a bytearray that is looked at refuses to
change its size, which is how this module knows, and so does a mapping. Large buffers are mappings of their own: on the
heap, in between what comes and goes, they would soon leave holes as large as themselves.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from typing import Final

Key = tuple[int, int]
"""(pack number, block number) of the index."""

Memory = bytearray | mmap.mmap
"""A buffer."""

_LEAST_BUFFER: Final = 16 << 10
_MAPPED: Final = 512 << 10  # bytes, from which on a buffer is a mapping


def _capacity(size: int) -> int:
    """The buffer for a block of `size` bytes: few different sizes, so that they serve each other."""
    return max(1 << (size - 1).bit_length(), _LEAST_BUFFER) if size else _LEAST_BUFFER


def _unseen(buffer: Memory) -> bool:
    """Whether nobody holds a view of the buffer."""
    try:
        if isinstance(buffer, mmap.mmap):
            buffer.resize(len(buffer))
            return True
        buffer.pop()
    except BufferError:
        return False
    buffer.append(0)  # what `pop` left allocated: nothing is moved
    return True


class BlockCache:
    """Blocks by key, the least recently used ones forgotten first. Guarded by its owner's lock.

    Whoever opens a block takes a buffer first, then puts the block, or gives the buffer back. What is taken counts: all
    buffers together stay below the limit, but for one block that alone is larger.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0  # bytes of all buffers: of blocks, taken, and free
        self._taken = 0  # buffers
        self._blocks: OrderedDict[Key, tuple[memoryview, Memory]] = OrderedDict()
        self._free: dict[int, list[Memory]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, key: Key) -> bool:
        return key in self._blocks

    @property
    def size(self) -> int:
        """Bytes of memory in use."""
        return self._size

    def get(self, key: Key) -> memoryview | None:
        """The block; it stays as it is for as long as the view is held."""
        block = self._blocks.get(key)
        if block is None:
            return None
        self._blocks.move_to_end(key)
        return block[0]

    def take(self, size: int) -> Memory | None:
        """A buffer for a block of `size` bytes; None where there is no room until others put theirs or give it back.

        An empty one stands for memory that is yet to be allocated: see `allocate`.
        """
        capacity = _capacity(size)
        free = self._free.get(capacity)
        if free:
            self._taken += 1
            return free.pop()
        while self._size + capacity > self._limit:
            buffer = self._forget()
            if buffer is None:
                if self._taken:
                    return None
                break
            if len(buffer) == capacity:
                self._taken += 1
                return buffer
            self._size -= len(buffer)
        self._size += capacity
        self._taken += 1
        return bytearray()

    def _forget(self) -> Memory | None:
        """A buffer that nobody needs: a free one, or that of the block least recently used that nobody looks at."""
        for buffers in self._free.values():
            if buffers:
                return buffers.pop()
        for _ in range(len(self._blocks)):
            key, (view, buffer) = self._blocks.popitem(last=False)
            size = len(view)
            del view  # the cache's own, or it would always be seen
            if _unseen(buffer):
                return buffer
            self._blocks[key] = (memoryview(buffer)[:size].toreadonly(), buffer)
        return None

    def put(self, key: Key, view: memoryview, buffer: Memory) -> memoryview:
        """Keep an opened block: a read-only view of the buffer that was taken for it. Returns the view to use."""
        self._taken -= 1
        self._blocks[key] = (view, buffer)
        return view

    def give_back(self, size: int, buffer: Memory) -> None:
        """The buffer taken for a block of `size` bytes is not needed."""
        self._taken -= 1
        if buffer and _unseen(buffer):
            self._free.setdefault(len(buffer), []).append(buffer)
        else:
            self._size -= _capacity(size)


def allocate(buffer: Memory, size: int) -> Memory:
    """The memory for a block of `size` bytes, where `take` has not given it yet. For outside the owner's lock."""
    if buffer:
        return buffer
    capacity = _capacity(size)
    if capacity >= _MAPPED:
        try:
            return mmap.mmap(-1, capacity)
        except OSError:
            pass  # the system bounds the number of mappings, and perhaps ours has a very large cache
    return bytearray(capacity)
