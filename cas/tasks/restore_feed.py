"""From planned entries to tasks: small files in batches, large ones in parts, each with the place of its data."""

from __future__ import annotations

from typing import Final

from cas.ids import CHUNK_ID_BYTES, ChunkId
from cas.store.content import Piece
from cas.store.reader import Reader
from cas.tasks.restore_data import Block, runs_of
from cas.tasks.restore_entries import Action, Batch, Job
from cas.tasks.restore_large import LargeFile
from cas.tasks.restore_write import ENTRY_FAULTS, Workers

_BATCH_JOBS: Final = 64
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

    def abandon(self) -> None:
        """Give back what was not handed on: an error has ended the walk."""
        Batch(self._jobs).abandon(self._workers)
        self._jobs = []

    def add(self, job: Job) -> None:
        """Take one entry in."""
        node = job.node
        pieces: list[Piece] | None = []
        if job.action is Action.CREATE and node.is_file:
            if node.depth or node.size > _PART_BYTES:
                self.flush()
                job.directory.hold()
                self._large(job)
                return
            if len(node.content) == CHUNK_ID_BYTES and (node.extra is None or node.extra.extents is None):
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
        self._jobs.append(job)
        self._pieces.append(pieces)
        if len(self._jobs) >= _BATCH_JOBS or self._bytes >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Look up where the data of the batch lies, and hand it to the threads."""
        if not self._jobs:
            return
        jobs, self._jobs = self._jobs, []
        pieces_of, self._pieces = self._pieces, []
        self._bytes = 0
        batch = Batch(jobs)
        try:
            blocks = self._locate(jobs, pieces_of)
        except BaseException:
            batch.abandon(self._workers)
            raise
        self._workers.submit(batch, blocks)

    def _locate(self, jobs: list[Job], pieces_of: list[list[Piece] | None]) -> list[Block]:
        """Give each job its runs, where all its chunks are found; returns the blocks in which they lie."""
        wanted: list[ChunkId] = []
        for job, pieces in zip(jobs, pieces_of, strict=True):
            if pieces is None:
                wanted.append(ChunkId(job.node.content))
            elif pieces:
                wanted.extend([piece.chunk for piece in pieces])
        locations = iter(self._reader.find_many(wanted))
        blocks: dict[Block, None] = {}
        for job, pieces in zip(jobs, pieces_of, strict=True):
            if pieces is None:
                location = next(locations)
                if location is not None and location.length == job.node.size:
                    job.runs = ((0, *location),)
                    blocks[location.pack, location.block] = None
            elif pieces:
                own = [next(locations) for _ in pieces]
                try:
                    job.runs = list(runs_of(pieces, own))
                except ENTRY_FAULTS:
                    job.runs = None  # who carries it out meets the fault, and tells
                    continue
                for run in job.runs:
                    blocks[run[1], run[2]] = None
        return list(blocks)

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
