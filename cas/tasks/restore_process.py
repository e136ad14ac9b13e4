"""Processes that write small files: five system calls a file are more than one interpreter can keep up with.

A thread of the run has a process of its own and sends it orders: which files, in which directories (as descriptors),
and in which sealed blocks their data lies. The process fetches and opens the blocks, writes the files and answers with
the numbers of those that it could not. It reports no reasons: the thread tries these files again itself, and meets,
tells or survives what was wrong. A process that dies costs speed and nothing else.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NoReturn

import msgspec
from msgspec import Struct

from cas.ids import PackId
from cas.model import Extra, Node, NodeKind
from cas.repository import Repository
from cas.store.formats import PackKind
from cas.store.keys import RepositoryKeys
from cas.store.sealer import PackOpener
from cas.target import posix
from cas.target.attributes import Attributes, Ids
from cas.tasks.restore_file import write_data
from cas.tasks.restore_jobs import Action, Job
from cas.vault.base import Vault
from cas.vault.local import LocalVault

MOST_DIRECTORIES: Final = 200
"""Directories in one order: each takes a descriptor, and the kernel passes 253 at once."""

_HEADER: Final = struct.Struct("<II")  # bytes of what follows, descriptors that come with it
_BLOCKS_KEPT: Final = 3
_LENGTH: Final = struct.Struct("<I")
_M_TRIM_THRESHOLD: Final = -1  # mallopt(3)
_M_MMAP_THRESHOLD: Final = -3


class _Block(Struct, array_like=True, frozen=True, gc=False):
    """A sealed block and how to open it."""

    kind: int
    pack: bytes
    salt: bytes
    number: int
    codec: int
    plain: int
    offset: int
    sealed: int
    name: str  # of the pack in the vault


class _Place(Struct, array_like=True, frozen=True, gc=False):
    """A directory; its descriptor comes beside it."""

    path: bytes
    natural: Ids
    inherits: bool


class _File(Struct, array_like=True, frozen=True, gc=False):
    """A file to write. `runs` are (offset in the file, number of the block in the order, offset in it, length)."""

    place: int
    name: bytes
    mode: int
    size: int
    mtime: int
    ids: Ids
    extra: Extra | None
    runs: list[tuple[int, int, int, int]]


class _Order(Struct, array_like=True, frozen=True):
    places: list[_Place]
    blocks: list[_Block]
    files: list[_File]


class WriterProcess:
    """One such process. Not thread safe: it belongs to one thread."""

    def __init__(self, repository: Repository, others: Sequence[WriterProcess]) -> None:
        """Fork. For a moment at which no other thread works in the repository; `others` were forked before.

        Raises OSError where the system has no more processes.
        """
        self._index = repository.index
        self._layout = repository.layout
        self._encoder = msgspec.msgpack.Encoder()
        self._socket, theirs = socket.socketpair()
        try:
            self._pid = os.fork()
        except BaseException:
            self._socket.close()
            theirs.close()
            raise
        if self._pid == 0:
            self._socket.close()
            for other in others:
                other._socket.close()  # or it would not see the end of the run
            _serve(theirs, repository.vault, repository.keys)
        theirs.close()
        self._alive = True

    @staticmethod
    def suits(repository: Repository) -> bool:
        """Whether the repository can be read in a fork: a vault with connections of its own cannot."""
        return hasattr(os, "fork") and isinstance(repository.vault, LocalVault)

    @staticmethod
    def takes(job: Job) -> bool:
        """Whether a job is one for a process: a new file, of which is known where its data lies."""
        is_new = job.action is Action.CREATE and job.node.kind == NodeKind.FILE and not job.empties
        return is_new and job.runs is not None and job.directory.fd >= 0

    def write(self, jobs: Sequence[Job]) -> set[int]:
        """Have these files written, of at most `MOST_DIRECTORIES` directories; positions of those that were."""
        if not self._alive or not jobs:
            return set()
        places: dict[int, int] = {}
        descriptors: list[int] = []
        blocks: dict[tuple[int, int], int] = {}
        order = _Order([], [], [])
        for job in jobs:
            directory, node = job.directory, job.node
            place = places.get(directory.fd)
            if place is None:
                place = places[directory.fd] = len(descriptors)
                descriptors.append(directory.fd)
                order.places.append(_Place(directory.path, directory.natural, directory.inherits))
            runs = []
            for at, pack, number, start, length in job.runs or ():
                block = blocks.get((pack, number))
                if block is None:
                    block = blocks[pack, number] = len(order.blocks)
                    order.blocks.append(self._block(pack, number))
                runs.append((at, block, start, length))
            order.files.append(_File(place, job.name, node.mode, node.size, node.mtime, job.ids, node.extra, runs))
        body = self._encoder.encode(order)
        try:
            socket.send_fds(self._socket, [_HEADER.pack(len(body), len(descriptors))], descriptors)
            self._socket.sendall(body)
            failed = msgspec.msgpack.decode(_receive(self._socket, _LENGTH.unpack(_receive(self._socket, 4))[0]))
        except (OSError, EOFError):
            self._alive = False
            return set()
        return set(range(len(jobs))).difference(failed)

    def _block(self, pack: int, number: int) -> _Block:
        info = self._index.pack(pack)
        where = self._index.block(pack, number)
        name = self._layout.pack(info.kind, info.id)
        return _Block(info.kind, info.id, info.salt, number, where.codec, where.plain, where.offset, where.sealed, name)

    def close(self) -> None:
        """End the process, and wait for it."""
        self._alive = False
        self._socket.close()
        os.waitpid(self._pid, 0)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly so many bytes. Raises EOFError, OSError."""
    data = connection.recv(size, socket.MSG_WAITALL)
    while len(data) < size:
        more = connection.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        data += more
    return data


# --- in the process ---------------------------------------------------------------------------------------------------


class _Told(Exception):
    """Somebody has to be told something: that is for the thread."""


class _Spot:
    """A directory of an order: what of `cas.target.directory.Directory` a new file needs."""

    __slots__ = ("fd", "inherits", "natural", "path")

    def __init__(self, place: _Place, fd: int) -> None:
        self.path = place.path
        self.natural = place.natural
        self.inherits = place.inherits
        self.fd = fd

    def path_of(self, name: bytes) -> bytes:
        return self.path + b"/" + name


class _Blocks:
    """The plain blocks of orders; the last ones are kept, for an order may end in the middle of one."""

    def __init__(self, vault: Vault, keys: RepositoryKeys) -> None:
        self.order: list[_Block] = []
        self._vault = vault
        self._keys = keys
        self._opener: tuple[bytes, PackOpener] | None = None
        self._kept: OrderedDict[tuple[bytes, int], memoryview] = OrderedDict()

    def __call__(self, pack: int, block: int) -> memoryview:
        """The block with this number in the order; `pack` has no meaning here. Raises as opening a block does."""
        wanted = self.order[block]
        key = (wanted.pack, wanted.number)
        plain = self._kept.get(key)
        if plain is None:
            plain = memoryview(self._open(wanted))
            self._kept[key] = plain
            if len(self._kept) > _BLOCKS_KEPT:
                self._kept.popitem(last=False)
        return plain

    def _open(self, block: _Block) -> bytes:
        if self._opener is None or self._opener[0] != block.pack:
            opener = PackOpener(self._keys, PackKind(block.kind), PackId(block.pack), block.salt)
            self._opener = (block.pack, opener)
        sealed = self._vault.get(block.name, block.offset, block.sealed)
        return self._opener[1].open_block(block.number, block.codec, block.plain, sealed, block.offset)


def _serve(connection: socket.socket, vault: Vault, keys: RepositoryKeys) -> NoReturn:
    """Carry out orders until nobody sends any more. The process ends here, without touching what the fork gave it."""
    try:
        # Ctrl-C is for the run, which ends this process; what it does not answer to it need not answer to either.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _keep_freed_memory()
        gc.disable()  # nothing here is in a circle, and looking for one would copy the memory shared with the run
        attributes = Attributes(_tell)
        blocks = _Blocks(vault, keys)
        decoder = msgspec.msgpack.Decoder(_Order)
        while True:
            header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, MOST_DIRECTORIES)
            if not header:
                break
            try:
                header += _receive(connection, _HEADER.size - len(header)) if len(header) < _HEADER.size else b""
                order = decoder.decode(_receive(connection, _HEADER.unpack(header)[0]))
                failed = _carry_out(order, descriptors, attributes, blocks)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            answer = msgspec.msgpack.encode(failed)
            connection.sendall(_LENGTH.pack(len(answer)) + answer)
    finally:
        os._exit(0)


def _keep_freed_memory() -> None:
    """For glibc: blocks of some MiB come and go, and the kernel would have to clear pages for each of them anew."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _tell(path: bytes, reason: str) -> None:
    raise _Told


def _carry_out(order: _Order, descriptors: list[int], attributes: Attributes, blocks: _Blocks) -> list[int]:
    """Write the files; the numbers of those that could not be written."""
    blocks.order = order.blocks
    spots = [_Spot(place, fd) for place, fd in zip(order.places, descriptors, strict=True)]
    failed = []
    for number, file in enumerate(order.files):
        node = Node(file.name, NodeKind.FILE, file.mode, 0, file.size, file.mtime, 0, 0, b"", 0, file.extra)
        runs = [(at, 0, block, start, length) for at, block, start, length in file.runs]
        try:
            spot = spots[file.place]
            temporary = write_data(attributes, spot, file.name, node, file.ids, runs, blocks)
            posix.place(spot, temporary, file.name, empties=False)
        except Exception:  # noqa: BLE001 - whatever it is, the thread will meet it
            failed.append(number)
    return failed
