"""From planned entries to tasks: small files in batches, large ones in parts, each with the place of its data."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.store.content import Piece
from cas.store.reader import Reader
from cas.tasks.restore_data import Block, runs_of
from cas.tasks.restore_entries import Batch
from cas.tasks.restore_jobs import Action, Job
from cas.tasks.restore_large import LargeFile
from cas.tasks.restore_process import MOST_DIRECTORIES, WriterProcess
from cas.tasks.restore_write import ENTRY_FAULTS, Workers

_BATCH_JOBS: Final = 1024
_BATCH_BYTES: Final = 4 << 20
_PART_BYTES: Final = 8 << 20


class Feed:
    """Takes entries in the order of the walk, looks up where their data lies and hands them to the threads."""

    def __init__(self, reader: Reader, workers: Workers) -> None:
        self._reader = reader
        self._workers = workers
        self._jobs: list[Job] = []
        self._pieces: list[list[Piece] | None] = []  # of each job; None where its file is one chunk
        self._bytes = 0
        self._directories = 0  # changes of directory from one job to the next

    def abandon(self) -> None:
        """Give back what was not handed on: an error has ended the walk."""
        Batch(self._jobs).abandon(self._workers)
        self._jobs = []

    def add(self, job: Job) -> None:
        """Take one entry in."""
        node = job.node
        pieces: list[Piece] | None = []
        if job.action is Action.CREATE and node.is_file:
            if node.size > _PART_BYTES:
                self.flush()
                job.directory.hold()
                self._large(job)
                return
            whole = not node.depth and (node.extra is None or node.extra.extents is None)
            if whole and len(node.content) == CHUNK_ID_BYTES:
                pieces = None
            else:
                try:
                    pieces = list(self._reader.content(node).pieces())
                    job.runs = ()
                except ENTRY_FAULTS:
                    pass  # the job has no runs then: who carries it out meets the same fault, and tells
            self._bytes += node.size
        if not self._jobs or self._jobs[-1].directory is not job.directory:
            job.directory.hold()
            self._directories += 1
        self._jobs.append(job)
        self._pieces.append(pieces)
        if self._bytes >= _BATCH_BYTES:
            self._hand_on(to_the_end=False)
        elif len(self._jobs) >= _BATCH_JOBS or self._directories >= MOST_DIRECTORIES:
            self.flush()

    def flush(self) -> None:
        """Hand on what is there."""
        self._hand_on(to_the_end=True)

    def _hand_on(self, *, to_the_end: bool) -> None:
        """Look up where the data of the batch lies, and hand it to the threads.

        Unless `to_the_end`, files at the end whose data lies in the last block are kept for the next batch: there will
        be more of them, and each process opens the blocks of its batches for itself.
        """
        if not self._jobs:
            return
        jobs, self._jobs = self._jobs, []
        pieces_of, self._pieces = self._pieces, []
        self._bytes = self._directories = 0
        try:
            self._locate(jobs, pieces_of)
            if not to_the_end:
                jobs = self._keep_last_block(jobs)
            blocks = self._blocks(jobs)
        except BaseException:
            Batch(jobs).abandon(self._workers)
            raise
        self._workers.submit(Batch(jobs), blocks)

    def _keep_last_block(self, jobs: list[Job]) -> list[Job]:
        """Take back the jobs at the end that lie in one block; returns those before them, or all where none are."""
        last = _only_block(jobs[-1])
        if last is None:
            return jobs
        count = len(jobs) - 1
        while count and _only_block(jobs[count - 1]) == last:
            count -= 1
        if not count:
            return jobs
        self._jobs = jobs[count:]
        self._pieces = [[] for _ in self._jobs]
        self._bytes = sum(job.node.size for job in self._jobs)
        directories = [job.directory for job in self._jobs]
        self._directories = 1 + sum(one is not other for one, other in pairwise(directories))
        if directories[0] is jobs[count - 1].directory:
            directories[0].hold()  # one hold for each of the two batches
        return jobs[:count]

    def _locate(self, jobs: list[Job], pieces_of: list[list[Piece] | None]) -> None:
        """Give each job its runs, where all its chunks are found."""
        wanted: list[ChunkId] = []
        for job, pieces in zip(jobs, pieces_of, strict=True):
            if pieces is None:
                wanted.append(ChunkId(job.node.content))
            elif pieces:
                wanted.extend([piece.chunk for piece in pieces])
        locations = iter(self._reader.find_many(wanted))
        for job, pieces in zip(jobs, pieces_of, strict=True):
            if pieces is None:
                location = next(locations)
                if location is not None and location.length == job.node.size:
                    job.runs = ((0, *location),)
            elif pieces:
                own = [next(locations) for _ in pieces]
                try:
                    job.runs = list(runs_of(pieces, own))
                except ENTRY_FAULTS:
                    job.runs = None  # who carries it out meets the fault, and tells

    def _blocks(self, jobs: list[Job]) -> list[Block]:
        """The blocks that the threads themselves will open."""
        theirs = bool(self._workers.processes)
        return list(
            dict.fromkeys(
                (run[1], run[2])
                for job in jobs
                if job.runs and not (theirs and WriterProcess.takes(job))
                for run in job.runs
            )
        )

    def _large(self, job: Job) -> None:
        """Hand a large file to the threads in parts, in the order of its data. Takes over one hold of its directory."""
        try:
            file = LargeFile(self._workers, job)
        except OSError as error:
            self._workers.warn(job.directory, job.name, error)
            return
        try:
            part: list[Piece] = []
            size = 0
            for piece in self._reader.content(job.node).pieces():
                part.append(piece)
                size += piece.length
                if size >= _PART_BYTES:
                    self._submit_part(file, part)
                    part.clear()
                    size = 0
            self._submit_part(file, part)
        except ENTRY_FAULTS as error:
            file.end(error)
        except BaseException:
            file.give_up()
            raise
        else:
            file.end()

    def _submit_part(self, file: LargeFile, pieces: list[Piece]) -> None:
        runs = list(runs_of(pieces, self._reader.find_many([piece.chunk for piece in pieces])))
        self._workers.submit(file.part(runs), list(dict.fromkeys((run[1], run[2]) for run in runs)))


def _only_block(job: Job) -> Block | None:
    """The block in which all of a file's data lies, where it is one."""
    if not job.runs:
        return None
    block = (job.runs[0][1], job.runs[0][2])
    return block if len(job.runs) == 1 or (job.runs[-1][1], job.runs[-1][2]) == block else None
