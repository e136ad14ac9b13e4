"""Entries on their way back: a batch of them, carried out by one thread and, if it has one, its process."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from typing import Final

from cas.model import NodeKind
from cas.target import posix
from cas.tasks.restore_data import LastBlock, equals, find_runs
from cas.tasks.restore_file import write_data
from cas.tasks.restore_jobs import Action, Job
from cas.tasks.restore_process import WriterProcess
from cas.tasks.restore_write import ENTRY_FAULTS, Workers, raise_if_fatal, reason_of

_DEVICES: Final = (NodeKind.CHARACTER_DEVICE, NodeKind.BLOCK_DEVICE)


class Batch:
    """Entries that one thread restores one after the other."""

    def __init__(self, jobs: list[Job]) -> None:
        """Takes over one hold of the directory of each run of jobs that share one."""
        self.weight = 0
        self.directories = 1 + sum(one.directory is not other.directory for one, other in pairwise(jobs))
        self._jobs = jobs

    def run(self, workers: Workers, process: WriterProcess | None) -> None:
        files = others = size = unchanged = done = done_bytes = 0
        block = LastBlock(workers.reader)
        try:
            written = set() if process is None else self._hand_over(process)
            for job in self._jobs:
                done += 1
                node = job.node
                try:
                    if done - 1 in written:
                        if job.anchor is not None:
                            job.anchor.settle(job.directory, job.name)
                        stays = False
                    elif job.action is Action.CREATE and node.kind == 0:
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

    def _hand_over(self, process: WriterProcess) -> set[int]:
        """Have the process write what it can; the numbers of the jobs that need nothing more."""
        theirs = [number for number, job in enumerate(self._jobs) if process.takes(job)]
        return {theirs[position] for position in process.write([self._jobs[number] for number in theirs])}

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
    runs = find_runs(workers.reader, job.node) if job.runs is None else job.runs
    verify = workers.read_back if workers.verify else None
    temporary = write_data(workers.attributes, job.directory, job.name, job.node, job.ids, runs, block, verify)
    _put(job, temporary)
    if job.anchor is not None and job.action is not Action.LINK:
        job.anchor.settle(job.directory, job.name)


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
