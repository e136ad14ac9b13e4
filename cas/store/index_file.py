"""What LMDB leaves to its user: who may look while the map changes, and whether the file is whole."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from cas.errors import BackdriveError
from cas.ids import ChunkId

_PAGE_BYTES: Final = mmap.PAGESIZE  # LMDB's default
_META: Final = struct.Struct("<136xQQ")  # of each of LMDB's first two pages: last page in use, transaction number


def cut_short(file: Path) -> bool:
    """Whether the file ends before its last page: LMDB does not look, and its process would die of SIGBUS.

    Its first two pages are alike but for a transaction number, and tell the number of the last page in use.
    """
    for attempt in range(3):
        if attempt:
            time.sleep(0.01)  # another process may have been writing just that
        try:
            with file.open("rb") as opened:
                head = opened.read(2 * _PAGE_BYTES)
                size = os.fstat(opened.fileno()).st_size
        except FileNotFoundError:
            return False
        if not head:
            return False  # LMDB makes a new one of it
        pages = [_META.unpack_from(head, start) for start in range(0, len(head) - _PAGE_BYTES + 1, _PAGE_BYTES)]
        if len(pages) == 2 and size >= (max(pages, key=lambda page: page[1])[0] + 1) * _PAGE_BYTES:
            return False
    return True


class Membership:
    """Answers "is this chunk known?" from one read transaction. For one thread. Raises CacheUnusable, NoSpace."""

    def __init__(
        self,
        environment: lmdb.Environment,
        chunks: lmdb._Database,
        resize: Callable[[int], None],
        translate: Callable[[lmdb.Error], BackdriveError],
        absent: Callable[[lmdb.Transaction], frozenset[bytes]],
    ) -> None:
        """`absent` gives the packs whose chunks count as unknown, by the bytes that start their rows in `chunks`."""
        self.lock = threading.Lock()  # held while looking, and by who changes the map: that ends the transaction
        self._environment = environment
        self._chunks = chunks
        self._resize = resize
        self._translate = translate
        self._find_absent = absent
        self._absent: frozenset[bytes] = frozenset()
        self._txn: lmdb.Transaction | None = None
        self._empty = False  # as for the whole of a first backup
        self.renew()

    def __contains__(self, chunk: ChunkId) -> bool:
        if self._empty:
            return False
        try:
            with self.lock:
                found = self._txn.get(chunk, db=self._chunks)  # type: ignore[union-attr]
        except lmdb.Error:
            self.renew()  # the map has grown
            try:
                with self.lock:
                    found = self._txn.get(chunk, db=self._chunks)  # type: ignore[union-attr]
            except lmdb.Error as error:
                raise self._translate(error) from None
        return found is not None and (not self._absent or found[:4] not in self._absent)

    def renew(self) -> None:
        """See what was loaded meanwhile."""
        self.close()
        try:
            while self._txn is None:
                try:
                    with self.lock:
                        self._txn = self._environment.begin()
                        self._empty = not self._txn.stat(db=self._chunks)["entries"]
                        self._absent = self._find_absent(self._txn)
                except lmdb.MapResizedError:  # another process has grown it
                    self._resize(0)
        except lmdb.Error as error:
            raise self._translate(error) from None

    def close(self) -> None:
        """Let go of the state."""
        with self.lock:
            if self._txn is not None:
                self._txn.abort()
                self._txn = None


class Gate:
    """Many readers inside, or alone the one who changes the map under them: LMDB leaves that to its user."""

    def __init__(self) -> None:
        self._alone = threading.Lock()
        self._left = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False
        self._opened = threading.Event()

    def __enter__(self) -> None:
        while True:
            if self._closed:  # looked at before the lock is taken: busy readers must not keep out who wants to be alone
                self._opened.wait()
            with self._left:
                if not self._closed:
                    self._inside += 1
                    return

    def __exit__(self, *_: object) -> None:
        with self._left:
            self._inside -= 1
            if self._closed:
                self._left.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and let nobody in. Never call it inside."""
        with self._alone:
            self._opened.clear()
            self._closed = True
            try:
                with self._left:
                    while self._inside:
                        self._left.wait()
                yield
            finally:
                self._closed = False
                self._opened.set()
