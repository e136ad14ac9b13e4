"""Entries on their way back: what was planned for each, and a batch of them carried out by one thread."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from cas.model import Node, NodeKind
from cas.target import posix
from cas.target.attributes import Ids, put_times
from cas.target.directory import Directory
from cas.tasks.restore_data import LastBlock, Run, equals, find_runs, write_runs
from cas.tasks.restore_write import ENTRY_FAULTS, Workers, raise_if_fatal, reason_of

_DEVICES: Final = (NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE)


class Action(Enum):
    """What to do for an entry."""

    CREATE = auto()
    KEEP = auto()  # it is there: put its attributes right
    LEAVE = auto()  # it is there: do not touch it
    LINK = auto()  # one more name of a file that was restored before


class Anchor:
    """The first restored name of a hard-linked file, to which the others are linked."""

    __slots__ = ("directory", "done", "left", "name")

    def __init__(self, names: int) -> None:
        self.done = threading.Event()
        self.directory: Directory | None = None  # None when done: the first name could not be restored
        self.name = b""
        self.left = names - 1

    def settle(self, directory: Directory, name: bytes) -> None:
        """The file stands there."""
        self.directory, self.name = directory, name
        self.done.set()


class Job:
    """One entry to restore into a directory. For a file `runs` is its data, or None where it is still to be found."""

    __slots__ = (
        "action",
        "anchor",
        "compare",
        "directory",
        "empties",
        "fallback",
        "ids",
        "name",
        "node",
        "runs",
        "seen",
    )

    def __init__(self, directory: Directory, node: Node, ids: Ids, name: bytes, action: Action) -> None:
        self.directory = directory
        self.node = node
        self.ids = ids
        self.name = name
        self.action = action
        self.runs: Sequence[Run] | None = None
        self.seen: os.stat_result | None = None  # what stands there
        self.compare = False  # whether what stands there is equal is still to be found out
        self.fallback = name  # where to create it where it is not
        self.empties = False  # an empty directory is in the way
        self.anchor: Anchor | None = None  # whom to link to; or, for CREATE, KEEP and LEAVE, whom to settle


class Batch:
    """Entries that one thread restores one after the other."""

    def __init__(self, jobs: list[Job]) -> None:
        """Takes over one hold of the directory of each run of jobs that share one."""
        self.weight = 0
        self._jobs = jobs

    def run(self, workers: Workers) -> None:
        files = others = size = unchanged = done = done_bytes = 0
        block = LastBlock(workers.reader)
        try:
            for job in self._jobs:
                done += 1
                node = job.node
                try:
                    if job.action is Action.CREATE and node.kind == 0:
                        write_file(workers, job, block)
                        stays = False
                    else:
                        stays = _settle(workers, job, block)
                except ENTRY_FAULTS as error:
                    _tell(workers, job, error)
                    continue
                finally:
                    self._end(done - 1)
                done_bytes += node.size
                if stays:
                    unchanged += 1
                elif node.kind == 0:
                    files += 1
                    size += node.size
                else:
                    others += 1
        finally:
            self._give_up(done)
            with workers.lock:
                result = workers.result
                result.files += files
                result.others += others
                result.size += size
                result.unchanged += unchanged
                workers.done_bytes += done_bytes
                if workers.verify:
                    result.verified += files

    def abandon(self, workers: Workers) -> None:
        self._give_up(0)

    def _give_up(self, start: int) -> None:
        for number in range(start, len(self._jobs)):
            self._end(number)

    def _end(self, number: int) -> None:
        """Nothing more is done for a job."""
        job = self._jobs[number]
        if job.anchor is not None and job.action is not Action.LINK:
            job.anchor.done.set()  # for those who wait, if it has not been settled
        if number + 1 == len(self._jobs) or self._jobs[number + 1].directory is not job.directory:
            job.directory.release()


def _tell(workers: Workers, job: Job, error: BaseException) -> None:
    if isinstance(error, PermissionError) and job.node.kind in _DEVICES and error.errno == errno.EPERM:
        path = job.directory.path_of(job.name)
        workers.attributes.tell_once("device", path, f"A device could not be made ({reason_of(error)})")
    else:
        workers.warn(job.directory, job.name, error)


def write_file(workers: Workers, job: Job, block: LastBlock) -> None:
    """Write a file whose data lies in few blocks. Raises ENTRY_FAULTS, and leaves nothing behind then."""
    node, directory, runs = job.node, job.directory, job.runs
    # A damaged block is met before anything is written.
    data = None
    if runs is not None and len(runs) == 1 and runs[0][4] == node.size:
        _, pack, number, start, length = runs[0]
        data = block(pack, number)[start : start + length]
    fd, temporary, settled = posix.create_file(workers.attributes, directory, node, job.ids, readable=workers.verify)
    try:
        try:
            if data is not None:
                written = os.write(fd, data)
                while written < len(data):
                    written += os.write(fd, data[written:])
            elif node.size:
                if node.extra is not None and node.extra.extents is not None:
                    os.ftruncate(fd, node.size)
                write_runs(block, fd, find_runs(workers.reader, node) if runs is None else runs)
            complete(workers, job, fd, settled=settled)
        finally:
            os.close(fd)
        posix.place(directory, temporary, job.name, empties=job.empties)
    except BaseException:
        posix.discard(directory, temporary)
        raise
    if job.anchor is not None and job.action is not Action.LINK:
        job.anchor.settle(directory, job.name)


def complete(workers: Workers, job: Job, fd: int, *, settled: bool) -> None:
    """Everything a written file still needs before it gets its name."""
    if workers.verify:
        workers.read_back(fd, job.node)
    if not settled:
        posix.settle_file(workers.attributes, job.directory, job.name, job.node, job.ids, fd)
    put_times(fd, job.node)


def _settle(workers: Workers, job: Job, block: LastBlock) -> bool:
    """Any entry but a plain new file. Returns whether what was there stays. Raises ENTRY_FAULTS."""
    directory, node = job.directory, job.node
    if job.action is Action.LINK:
        return _link(workers, job, block)
    if job.action is not Action.CREATE:
        assert job.seen is not None
        if not job.compare or _is_equal(workers, job):
            if job.action is Action.KEEP:
                posix.put_right(workers.attributes, directory, job.name, node, job.ids, job.seen)
            if job.anchor is not None:
                job.anchor.settle(directory, job.name)
            return True
        job.name = job.fallback
    if node.is_file:
        write_file(workers, job, block)
        return False
    temporary = posix.make_other(workers.attributes, directory, job.name, node, job.ids)
    _put(job, temporary)
    if job.anchor is not None:
        job.anchor.settle(directory, job.name)
    return False


def _put(job: Job, temporary: bytes) -> None:
    try:
        posix.place(job.directory, temporary, job.name, empties=job.empties)
    except BaseException:
        posix.discard(job.directory, temporary)
        raise


def _is_equal(workers: Workers, job: Job) -> bool:
    fd = posix.open_existing(job.directory, job.name)
    try:
        equal = equals(workers.reader, fd, job.node)
    finally:
        os.close(fd)
    if equal:
        with workers.lock:
            workers.result.verified += 1
    return equal


def _link(workers: Workers, job: Job, block: LastBlock) -> bool:
    """A further name of a hard-linked file; where it cannot be linked, a file of its own. As `_settle`."""
    anchor = job.anchor
    assert anchor is not None
    anchor.done.wait()
    if anchor.directory is not None:
        if job.seen is not None and posix.same_file(anchor.directory, anchor.name, job.seen):
            return True
        try:
            temporary = posix.link(anchor.directory, anchor.name, job.directory)
        except OSError as error:  # too many links, another file system, one that has no links
            raise_if_fatal(error, workers.target)
        else:
            _put(job, temporary)
            return False
    if job.node.is_file:
        write_file(workers, job, block)
    else:
        _put(job, posix.make_other(workers.attributes, job.directory, job.name, job.node, job.ids))
    return False
