"""The threads that write: tasks begun in the order in which they were planned, with bounded work ahead of them.

A task waits only for one that was planned before it (a further name of a hard-linked file for the first), so nothing
can wait in a circle.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, Protocol

from cas.errors import Damaged, FormatTooNew, NoSpace, ObjectMissing, TargetUnusable
from cas.model import Node
from cas.store.index import Index
from cas.store.reader import Reader
from cas.target.attributes import Attributes
from cas.target.directory import Directory, why
from cas.tasks.requests import RestoreResult
from cas.tasks.restore_data import Block, Prefetch, equals
from cas.tasks.restore_process import WriterProcess

_AHEAD_BYTES: Final = 32 << 20  # of plain blocks; the reader's cache for data must hold more than that
_AHEAD_TASKS: Final = 8
_AHEAD_DIRECTORIES: Final = 600  # each is an open descriptor, of which a process may have 1,024
_FETCHERS: Final = 1  # writers open blocks too, where they are not there in time

WRITERS: Final = min(max(os.cpu_count() or 1, 2), 4)
"""Threads that write."""

ENTRY_FAULTS: Final = (OSError, Damaged, FormatTooNew, ObjectMissing)
"""What concerns one entry only, unless `raise_if_fatal` says otherwise."""


def raise_if_fatal(error: BaseException, target: str) -> None:
    """Raise what ends the run where the error is not about one entry: a full or read-only target."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("restore target", target) from None
        if error.errno == errno.EROFS:
            raise TargetUnusable(
                f"The file system of {target} is mounted read-only.", "Restore to another place, or remount it."
            ) from None


def reason_of(error: BaseException) -> str:
    """For a warning."""
    return why(error) if isinstance(error, OSError) else str(error)


class Task(Protocol):
    """A piece of work in the queue. `run` and `abandon` give everything back, whatever happens."""

    weight: int  # bytes of plain blocks that are wanted for it and were not for the tasks before
    directories: int  # that it holds

    def run(self, workers: Workers, process: WriterProcess | None) -> None: ...

    def abandon(self, workers: Workers) -> None: ...


class Workers:
    """Writes what is submitted. Use as a context manager; `finish` before leaving it, or what is left is abandoned."""

    def __init__(
        self,
        reader: Reader,
        index: Index,
        attributes: Attributes,
        result: RestoreResult,
        *,
        target: str,
        verify: bool,
        processes: Sequence[WriterProcess] = (),
    ) -> None:
        """As many threads write as there are processors, from two to four, the first ones with a process each.

        The processes are ended with the threads. `target` is for messages.
        """
        self.reader: Final = reader
        self.attributes: Final = attributes
        self.result: Final = result
        self.target: Final = target
        self.verify: Final = verify
        self.done_bytes = 0  # of whole files and parts, written or there already; for the progress
        self.lock = threading.Lock()  # guards `result` and `done_bytes`
        self.failure: BaseException | None = None
        self._index = index
        self._recent: OrderedDict[Block, int] = OrderedDict()
        self._recent_bytes = 0
        self._room = threading.Condition()
        self._ahead = self._tasks = self._directories = 0
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._prefetch = Prefetch(reader, _FETCHERS, lambda: self.failure is not None)
        self.processes: Final = processes
        self._threads = [
            threading.Thread(target=self._loop, args=(process,), name="write", daemon=True)
            for process in (*processes, *[None] * (WRITERS - len(processes)))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._threads:
            self.fail(error or RuntimeError("the restore was left without finish"))
            self._stop()

    # --- the planner's calls ---

    def submit(self, task: Task, blocks: Sequence[Block]) -> None:
        """Queue a task that reads these blocks; waits while enough is queued.

        Raises what ended the run in another thread; the task is abandoned then.
        """
        try:
            new = self._new_blocks(blocks)
            task.weight = sum(new.values())
            with self._room:
                if self._tasks and (
                    self._ahead + task.weight > _AHEAD_BYTES
                    or self._directories + task.directories > _AHEAD_DIRECTORIES
                    or self._tasks >= _AHEAD_TASKS
                ):
                    # Until half of it is done: the walk and the writers then disturb each other in longer turns.
                    while self.failure is None and self._tasks and not self._half_done(task):
                        self._room.wait()
                self.check()
                self._ahead += task.weight
                self._directories += task.directories
                self._tasks += 1
        except BaseException:
            task.abandon(self)
            raise
        if task.weight <= _AHEAD_BYTES:
            self._prefetch.want(list(new))
        self._queue.put(task)

    def _half_done(self, task: Task) -> bool:
        return (
            self._tasks <= _AHEAD_TASKS // 2
            and self._ahead + task.weight <= _AHEAD_BYTES // 2
            and self._directories + task.directories <= _AHEAD_DIRECTORIES
        )

    def _new_blocks(self, blocks: Sequence[Block]) -> dict[Block, int]:
        """Those that no task shortly before wanted, and their sizes."""
        new: dict[Block, int] = {}
        recent = self._recent
        for block in blocks:
            if block in recent:
                recent.move_to_end(block)
            else:
                size = self._index.block(*block).plain
                new[block] = recent[block] = size
                self._recent_bytes += size
        while self._recent_bytes > _AHEAD_BYTES and len(recent) > len(new):
            self._recent_bytes -= recent.popitem(last=False)[1]
        return new

    def drain(self) -> None:
        """Wait until everything submitted is done. Raises what ended the run in another thread."""
        with self._room:
            while self._tasks and self.failure is None:
                self._room.wait()
            self.check()

    def finish(self) -> None:
        """`drain`, and end the threads."""
        self.drain()
        self._stop()
        self.check()

    def fail(self, error: BaseException) -> None:
        """End the run: what is queued is abandoned."""
        with self._room:
            if self.failure is None:
                self.failure = error
            self._room.notify_all()

    def check(self) -> None:
        """Raise what ended the run in another thread."""
        if self.failure is not None:
            raise self.failure

    def _stop(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._prefetch.close()
        for process in self.processes:
            process.close()

    # --- the threads ---

    def _loop(self, process: WriterProcess | None) -> None:
        while (task := self._queue.get()) is not None:
            try:
                if self.failure is None:
                    task.run(self, process)
                else:
                    task.abandon(self)
            except BaseException as error:  # noqa: BLE001 - handed to the planner
                self.fail(error)
            with self._room:
                self._ahead -= task.weight
                self._directories -= task.directories
                self._tasks -= 1
                self._room.notify()

    def warn(self, directory: Directory, name: bytes, error: BaseException) -> None:
        """Tell that an entry could not be restored, or raise where nothing can be."""
        raise_if_fatal(error, self.target)
        self.attributes.tell(directory.path_of(name), reason_of(error))

    def read_back(self, fd: int, node: Node) -> None:
        """Raises Damaged where the file does not hold what was written."""
        if not equals(self.reader, fd, node):
            raise Damaged("What was written reads back differently.", "Check the disk of the restore target.")
