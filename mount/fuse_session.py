"""A session with the kernel: reads requests from the FUSE device, has them answered, and ends in good order.

One thread reads, and answers at once what is at hand; what has to wait for the vault goes to other threads, so that one
slow read holds up nobody else. (More threads or processes that read requests were measured, and win nothing on two
processors.) What requests mean is for the operations to know.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

from cas.errors import MountFailed
from mount import fuse_mount, fuse_wire
from mount.fuse_wire import BODY, IN_HEADER, INIT, INTERRUPT, OUT_HEADER
from mount.pages import MustWait

_log = logging.getLogger("backdrive.drive")

# A request of the kernel that is not for data is smaller than this, but for the values of extended attributes to set
# (64 KiB) and the numbers of nodes to forget, which come in lots as large as the buffer.
_BUFFER: Final = 128 << 10
_MAX_WRITE: Final = 4096  # nobody writes
_PAGES: Final = 256  # in one request: 1 MiB, which is also the kernel's own limit
_MAX_READ_AHEAD: Final = 8 << 20  # bytes; how far it really reads ahead is set in sysfs
_READ_AHEAD_KIB: Final = 1024  # as much as one request may ask for
_BACKGROUND: Final = 64  # requests for data that the kernel has under way ahead of its readers
_THREADS: Final = 24
_GRACE: Final = 2.0  # seconds that reads under way have when the drive is told to stop
_POLL: Final = 0.02  # seconds
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_REQUIRED: Final = fuse_wire.DO_READDIRPLUS | fuse_wire.MAX_PAGES | fuse_wire.NO_OPEN_SUPPORT
_AGAIN: Final = frozenset((errno.ENOENT, errno.EINTR, errno.EAGAIN))  # of reading: there was a request, and it is gone
_GONE: Final = frozenset((errno.ENODEV, errno.ECONNABORTED))  # the file system is unmounted
_NOBODY: Final = -1

Payload = bytes | memoryview | None
Operation = Callable[[int, memoryview, bool], Payload]
"""(node, body, wait) -> what to reply, None where the kernel expects nothing. The body is good until it returns."""


class Refused(Exception):
    """What the kernel asked for is answered with an errno, `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True)
class Counters:
    """What a session was asked for. Written by its threads without a lock; any thread may read."""

    requests: int = 0  # of the kernel, of any kind
    reads: int = 0
    read_bytes: int = 0
    errors: int = 0  # requests that failed because something could not be read


class _Waiting(NamedTuple):
    unique: int
    opcode: int
    node: int
    body: memoryview
    operation: Operation


class Session:
    """One mounted file system."""

    def __init__(
        self,
        operations: Mapping[int, Operation],
        fault: Callable[[int, int, Exception], int],
        flags: int,
        counters: Counters,
        threads: int = _THREADS,
    ) -> None:
        """What is asked for by opcode; without an operation it is ENOSYS. So many threads at most wait for the vault.

        Operations raise MustWait to be called again, in another thread and with `wait`; Refused; and anything else,
        of which `fault` (opcode, node, error) makes an errno. `flags` are those of INIT that are wanted where the
        kernel has them.
        """
        self._operations = {**operations, INIT: self._negotiate, INTERRUPT: self._interrupt}
        self._fault = fault
        self._flags = flags
        self._counters = counters
        self._target = ""
        self._device = -1
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._stopping = False
        self._ended = threading.Event()
        self._problem: Exception | None = None
        self._ready: Callable[[], None] = lambda: None
        self._main = threading.get_ident()
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._most_threads = threads
        self._threads = 0
        self._waiting: dict[int, int] = {}  # who asked, by unique; whoever takes a request out of it answers it

    def serve(self, target: str, ready: Callable[[], None], *, allow_other: bool) -> None:
        """Mount and answer until somebody unmounts, or SIGTERM or SIGINT comes; then unmount. For the main thread.

        `ready` is called in a thread when the file system answers. Raises MountFailed, and what `ready` raises.
        """
        self._target = target
        self._ready = ready
        with self._listening():
            with self._lock:
                if self._stopping:
                    return
                self._device = fuse_mount.attach(target, allow_other=allow_other)
            unmounted = False
            try:
                unmounted = self._answer_all()
            finally:
                self._end()
                self._let_go()
                if not unmounted:
                    fuse_mount.detach(target, lazily=True)
                for _ in range(self._threads):
                    self._queue.put(None)
        if self._problem is not None:
            raise self._problem

    # --- requests ---

    def _answer_all(self) -> bool:
        """The loop. Ends when the file system is unmounted, or is about to be: whether that is done."""
        device, counters, get = self._device, self._counters, self._operations.get
        buffer = bytearray(_BUFFER)
        view, buffers = memoryview(buffer), [buffer]
        readv, unpack = os.readv, IN_HEADER.unpack_from
        while True:
            try:
                if not readv(device, buffers):
                    return self._stopping  # /dev/null is in its place
            except OSError as error:
                if error.errno in _AGAIN:
                    continue
                if error.errno in _GONE:
                    return True
                raise
            length, opcode, unique, node, _, _, pid, _, _ = unpack(buffer)
            counters.requests += 1
            operation = get(opcode, _unknown)
            try:
                payload = operation(node, view[BODY:length], False)
            except MustWait:
                body = memoryview(bytes(view[BODY:length]))
                self._queue_up(_Waiting(unique, opcode, node, body, operation), pid)
                continue
            except Exception as error:  # noqa: BLE001 - one request fails, and not the drive
                self._refuse(unique, opcode, node, error)
                continue
            if payload is not None:
                self._reply(unique, payload)

    def _reply(self, unique: int, payload: bytes | memoryview) -> None:
        try:
            os.writev(self._device, (OUT_HEADER.pack(OUT_HEADER.size + len(payload), 0, unique), payload))
        except OSError as error:
            self._not_sent(unique, error)

    def _refuse(self, unique: int, opcode: int, node: int, error: Exception) -> None:
        if isinstance(error, Refused):
            number = error.number
        else:
            number = self._fault(opcode, node, error)
        if opcode not in fuse_wire.WITHOUT_REPLY:
            self._send_error(unique, number)

    def _send_error(self, unique: int, number: int) -> None:
        try:
            os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size, -number, unique))
        except OSError as error:
            if error.errno not in _GONE and error.errno != errno.ENOENT:
                _log.error("the kernel did not take an answer: %s", error.strerror)

    def _not_sent(self, unique: int, error: OSError) -> None:
        """ENOENT: nobody waits for the answer any more."""
        if error.errno not in _GONE and error.errno != errno.ENOENT:
            _log.error("the kernel did not take an answer: %s", error.strerror)
            self._send_error(unique, errno.EIO)

    # --- requests that wait ---

    def _queue_up(self, request: _Waiting, pid: int) -> None:
        self._waiting[request.unique] = pid
        self._queue.put(request)
        if self._threads < min(len(self._waiting), self._most_threads):
            self._threads += 1
            # Daemons: a vault that never answers must not keep the process.
            threading.Thread(target=self._work, name=f"waiting {self._threads}", daemon=True).start()

    def _work(self) -> None:
        while (request := self._queue.get()) is not None:
            unique, opcode, node, body, operation = request
            try:
                payload = operation(node, body, True)
            except Exception as error:  # noqa: BLE001 - as above
                if self._waiting.pop(unique, _NOBODY) != _NOBODY:
                    self._refuse(unique, opcode, node, error)
            else:
                if self._waiting.pop(unique, _NOBODY) != _NOBODY and payload is not None:
                    self._reply(unique, payload)

    def _interrupt(self, node: int, body: memoryview, wait: bool) -> None:
        """Somebody who waits got a signal. Only those whom it ends are let go: others do not expect EINTR of a file.

        What the answer would have told the kernel to remember is then remembered here alone: a little memory.
        """
        (unique,) = fuse_wire.UNIQUE_IN.unpack_from(body)
        pid = self._waiting.get(unique, _NOBODY)
        if pid != _NOBODY and _is_ending(pid) and self._waiting.pop(unique, _NOBODY) != _NOBODY:
            self._send_error(unique, errno.EINTR)

    def drop_cached(self, node: int) -> None:
        """Have the kernel drop what it keeps of a node's data, soon. For the thread that answers."""

        def tell(node: int, body: memoryview, wait: bool) -> None:
            with suppress(OSError):  # ENOENT: it keeps nothing
                os.write(self._device, fuse_wire.pack_inval_inode(node))

        # In another thread: the kernel may have to wait for an answer of ours before it can do it.
        self._queue_up(_Waiting(0, fuse_wire.NOTIFY_REPLY, node, memoryview(b""), tell), 0)

    # --- the beginning ---

    def _negotiate(self, node: int, body: memoryview, wait: bool) -> bytes:
        offer = fuse_wire.unpack_init(body)
        if offer.major > fuse_wire.MAJOR:  # it asks again, in the version that it is told
            return fuse_wire.pack_init(0, 0, max_readahead=0, background=0, max_write=0, max_pages=0)
        too_old = (offer.major, offer.minor) < (fuse_wire.MAJOR, fuse_wire.OLDEST_MINOR)
        if too_old or offer.flags & _REQUIRED != _REQUIRED:
            self._problem = MountFailed(
                f"This system's kernel is too old for drives: it has FUSE {offer.major}.{offer.minor}.",
                "Linux 5.4 and later have what is needed; 'backdrive restore' works everywhere.",
            )
            threading.Thread(target=self.stop, daemon=True).start()
            raise Refused(errno.EPROTO)
        threading.Thread(target=self._say_ready, name="ready", daemon=True).start()
        return fuse_wire.pack_init(
            min(offer.minor, fuse_wire.MINOR),
            (self._flags | _REQUIRED) & offer.flags,
            max_readahead=_MAX_READ_AHEAD,
            background=_BACKGROUND,
            max_write=_MAX_WRITE,
            max_pages=_PAGES,
        )

    def _say_ready(self) -> None:
        try:
            fuse_mount.raise_read_ahead(self._target, _READ_AHEAD_KIB)
            self._ready()
        except Exception as error:  # noqa: BLE001 - raised by `serve`
            self._problem = error
            self.stop()

    # --- the end ---

    def stop(self) -> None:
        """Unmount and have `serve` return; reads under way may end, for a while. Not for the thread that serves."""
        with self._lock:
            self._stopping = True
            if self._device < 0:
                return
        if not self._ended.is_set() and not fuse_mount.detach(self._target, lazily=False):
            deadline = time.monotonic() + _GRACE
            while self._waiting and not self._ended.is_set() and time.monotonic() < deadline:
                time.sleep(_POLL)
            if not self._ended.is_set():
                fuse_mount.detach(self._target, lazily=True)
                self._let_go()
        while not self._ended.wait(_POLL):
            with self._lock:  # the handler of the signal is in place until it has ended
                if not self._ended.is_set():
                    # The loop may be about to read, so once might be too early.
                    signal.pthread_kill(self._main, _SIGNALS[0])

    def _end(self) -> None:
        with self._lock:
            self._ended.set()

    def _let_go(self) -> None:
        """Close the device. Threads may still want to answer on it, so its number stays taken, by /dev/null."""
        os.dup2(self._null, self._device, inheritable=False)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Have signals stop the session. Any thread may be the one to get them, so they are waited for in a thread."""
        self._main = threading.get_ident()
        heard, told = socket.socketpair()
        told.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True)
        listener.start()
        try:
            yield
        finally:
            self._end()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            told.close()
            listener.join(_GRACE)
            heard.close()

    def _listen(self, heard: socket.socket) -> None:
        # SIGHUP comes here only where somebody handles it, which is where it means the end as well.
        while numbers := heard.recv(64):
            if set(numbers) & {*_SIGNALS, signal.SIGHUP} and not self._stopping:
                self.stop()


def _unknown(node: int, body: memoryview, wait: bool) -> None:
    raise Refused(errno.ENOSYS)  # of which the kernel takes note, and does not ask again


def _is_ending(pid: int) -> bool:
    """Whether a thread is about to be ended by a signal: the kernel makes every such signal a SIGKILL."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigPnd:"):
                return bool(int(line.split()[1], 16) & 1 << signal.SIGKILL - 1)
    except (OSError, ValueError):
        pass
    return False
