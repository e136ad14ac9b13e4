"""Large files: several threads write different parts of one file."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from cas.target import posix
from cas.tasks.restore_data import LastBlock, Run, write_runs
from cas.tasks.restore_file import complete
from cas.tasks.restore_jobs import Job
from cas.tasks.restore_process import WriterProcess
from cas.tasks.restore_write import ENTRY_FAULTS, Workers


class LargeFile:
    """A file that several threads write at once. It counts its parts; the last one to end completes it."""

    def __init__(self, workers: Workers, job: Job) -> None:
        """Takes over one hold of the job's directory. Raises OSError, and has given it back then."""
        self._workers = workers
        self._job = job
        self._lock = threading.Lock()
        self._open = 1  # parts not ended, and the planner
        self.error: BaseException | None = None
        try:
            self._fd, self._temporary, self._settled = posix.create_file(
                workers.attributes, job.directory, job.node, job.ids, readable=workers.verify
            )
            try:
                os.ftruncate(self._fd, job.node.size)
            except BaseException:
                os.close(self._fd)
                posix.discard(job.directory, self._temporary)
                raise
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        if self._job.anchor is not None:
            self._job.anchor.done.set()
        self._job.directory.release()

    def part(self, runs: Sequence[Run]) -> Part:
        """One more part."""
        with self._lock:
            self._open += 1
        return Part(self, runs)

    def write(self, runs: Sequence[Run]) -> None:
        """Write one part, unless another one has failed."""
        if self.error is None:
            write_runs(LastBlock(self._workers.reader), self._fd, runs)
            with self._workers.lock:
                self._workers.done_bytes += sum(run[4] for run in runs)

    def end(self, error: BaseException | None = None) -> None:
        """A part, or the planner, is done with it. The last one completes the file; raises what ends the run."""
        with self._lock:
            self._open -= 1
            self.error = self.error or error
            if self._open:
                return
        workers, job = self._workers, self._job
        try:
            try:
                try:
                    self._raise_error()
                    complete(
                        workers.attributes,
                        job.directory,
                        job.name,
                        job.node,
                        job.ids,
                        self._fd,
                        settled=self._settled,
                        read_back=workers.read_back if workers.verify else None,
                    )
                finally:
                    os.close(self._fd)
                posix.place(job.directory, self._temporary, job.name, empties=job.empties)
            except BaseException:
                posix.discard(job.directory, self._temporary)
                raise
            if job.anchor is not None:
                job.anchor.settle(job.directory, job.name)
            with workers.lock:
                workers.result.files += 1
                workers.result.size += job.node.size
                workers.result.verified += workers.verify
        except ENTRY_FAULTS as fault:
            workers.warn(job.directory, job.name, fault)
        finally:
            self._give_back()

    def give_up(self) -> None:
        """`end` where the run has failed elsewhere."""
        try:
            self.end(Abandoned())
        except Abandoned:
            pass

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error


class Abandoned(Exception):
    """Another part of the run has failed; nobody needs to be told of this."""


class Part:
    """Some runs of a large file."""

    def __init__(self, file: LargeFile, runs: Sequence[Run]) -> None:
        self.weight = 0
        self.directories = 1
        self._file = file
        self._runs = runs

    def run(self, workers: Workers, process: WriterProcess | None) -> None:
        error: BaseException | None = None
        try:
            self._file.write(self._runs)
        except BaseException as fault:  # noqa: BLE001 - `end` sorts it out
            error = fault
        self._file.end(error)

    def abandon(self, workers: Workers) -> None:
        self._file.give_up()
