"""pyfuse3's callbacks <-> the view. The only place where a fault of ours becomes an errno.

What is at hand is answered in the event loop; what has to wait for the vault goes to a thread, so that one slow read
holds up nobody else. Everything inside a point is immutable: the kernel may keep names, attributes and data for good.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from cas.errors import BackdriveError, MountFailed
from mount.files import OpenFile
from mount.inodes import is_link
from mount.view import Attributes, DirectoryHandle, Entry, MustWait, Stale, View, WrongKind

_log = logging.getLogger("backdrive.drive")

_FOR_EVER: Final = 365 * 86400.0  # seconds
_SHORT: Final = 3.0  # for the folders above the points
_UNIT: Final = 4096  # of statfs
_IO_BYTES: Final = 128 << 10  # what programs are advised to read at once
_SECTOR: Final = 512  # the unit of st_blocks
_THREADS: Final = 24  # reads that wait for the vault at the same time
_REQUESTS: Final = 128  # answered at the same time, those that wait included
_READ_AHEAD_KIB: Final = 1024  # as much as one request may ask for
_GRACE: Final = 2.0  # seconds that reads under way have when the drive is told to stop
_QUIET: Final = 60.0  # seconds in which the same fault is not logged again
_QUIET_MOST: Final = 1024
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How a drive is mounted. `allow_other`: other users may look in, each with the rights that the modes give."""

    allow_other: bool = False

    def for_kernel(self) -> set[str]:
        """As libfuse wants them."""
        options = {"ro", "nosuid", "nodev", "noatime", "default_permissions", "fsname=backdrive", "subtype=backdrive"}
        return options | ({"allow_other"} if self.allow_other else set())


class _Faults:
    """Logs what could not be read: one line for a file and a reason, however often the kernel asks again."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._told: dict[tuple[int, str], float] = {}

    def tell(self, inode: int, error: BackdriveError) -> None:
        """One line naming the file and what is wrong in the vault, unless it was told just now."""
        now = time.monotonic()
        key = (inode, str(error.args[0]))
        if now - self._told.get(key, -_QUIET) < _QUIET:
            return
        if len(self._told) >= _QUIET_MOST:
            self._told.clear()
        self._told[key] = now
        _log.error("%s: %s", os.fsdecode(self._view.path(inode)), error.args[0])


def _guarded(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """An unforeseen fault fails the one request that met it, and not the drive."""

    @functools.wraps(handler)
    async def guard(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except FUSEError:
            raise
        except Exception:  # noqa: BLE001 - logged with its traceback; the drive lives on
            _log.exception("unforeseen fault in %s", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guard


def entry_attributes(attributes: Attributes) -> EntryAttributes:
    """As the kernel wants them, with how long it may keep them."""
    entry = EntryAttributes()
    entry.st_ino = attributes.inode
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.links
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blocks = (attributes.allocated + _SECTOR - 1) // _SECTOR
    entry.st_blksize = _IO_BYTES
    entry.st_mtime_ns = entry.st_atime_ns = attributes.mtime
    entry.st_ctime_ns = attributes.ctime
    if attributes.device != (0, 0):
        entry.st_rdev = os.makedev(*attributes.device)
    entry.entry_timeout = entry.attr_timeout = _FOR_EVER if attributes.lasting else _SHORT
    return entry


class Drive(pyfuse3.Operations):
    """The callbacks. Attributes of the class tell pyfuse3 what to agree on with the kernel."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True  # the kernel checks POSIX ACLs, and shows them

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view
        self._faults = _Faults(view)
        self._waiting = trio.CapacityLimiter(_THREADS)
        self._files: dict[int, tuple[OpenFile, int]] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._next_handle = 1

    async def _ask(self, inode: int, call: Callable[..., T], *arguments: object, **named: object) -> T:
        """What the view answers: at once where it can, else from a thread. Faults become the errno to reply with."""
        try:
            try:
                return call(*arguments, wait=False, **named)
            except MustWait:
                work = functools.partial(call, *arguments, **named)
                return await trio.to_thread.run_sync(work, limiter=self._waiting, abandon_on_cancel=True)
        except BackdriveError as error:
            self._faults.tell(inode, error)
            raise FUSEError(errno.EIO) from None
        except Stale:
            raise FUSEError(errno.ESTALE) from None

    # --- names and attributes ---

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            found = await self._ask(parent_inode, self._view.lookup, parent_inode, name, hold=True)
        except WrongKind:
            raise FUSEError(errno.ENOTDIR) from None
        if found is not None:
            return entry_attributes(found)
        missing = EntryAttributes()  # inode 0: the kernel may remember that there is nothing
        missing.st_ino = 0
        missing.entry_timeout = _FOR_EVER if self._view.is_lasting(parent_inode) else _SHORT
        return missing

    async def forget(self, inode_list: list[tuple[int, int]]) -> None:  # type: ignore[override]
        for inode, count in inode_list:
            self._view.release(inode, count)

    @_guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return entry_attributes(await self._ask(inode, self._view.attributes, inode))

    @_guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        try:
            return await self._ask(inode, self._view.readlink, inode)
        except WrongKind:
            raise FUSEError(errno.EINVAL) from None

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        value = (await self._ask(inode, self._view.xattrs, inode)).get(name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @_guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return list(await self._ask(inode, self._view.xattrs, inode))

    @_guarded
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        usage = self._view.usage()
        stats = StatvfsData()
        stats.f_bsize = stats.f_frsize = _UNIT
        stats.f_blocks = (usage.size + _UNIT - 1) // _UNIT
        stats.f_bfree = stats.f_bavail = 0
        stats.f_files = usage.files
        stats.f_ffree = stats.f_favail = 0
        stats.f_namemax = 255
        return stats

    # --- directories ---

    @_guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        try:
            handle = await self._ask(inode, self._view.open_directory, inode)
        except WrongKind:
            raise FUSEError(errno.ENOTDIR) from None
        number = self._next_handle
        self._next_handle += 1
        self._directories[number] = handle
        return number

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Cookies 1 and 2 follow `.` and `..`; 2 + n follows the entry with the view's cookie n."""
        handle = self._directories[fh]
        for number, name, inode in ((1, b".", handle.inode), (2, b"..", handle.parent_inode)):
            if start_id < number and not pyfuse3.readdir_reply(token, name, _dot(inode), number):
                return
        cookie = first = max(start_id - 2, 0)
        try:
            while True:
                entries = await self._ask(handle.inode, self._view.entries, handle, cookie)
                after = self._reply(token, entries, cookie)
                if after is None:
                    return
                cookie = after
        except FUSEError:
            if cookie == first:
                raise
            # Some entries are in the reply already: the kernel gets these, and meets the fault when it goes on.

    def _reply(self, token: ReaddirToken, entries: Iterator[Entry], after: int) -> int | None:
        """Put entries into the reply until it is full (then None) or they end (then the cookie to go on with)."""
        held = inode = cookie = 0
        full = False
        reply = pyfuse3.readdir_reply
        for cookie, name, attributes in entries:
            if not reply(token, name, entry_attributes(attributes), cookie + 2):
                full = True
                break
            if is_link(attributes.inode):
                self._view.hold(attributes.inode)
            else:
                held += 1
                inode = attributes.inode  # all of them belong to this directory: one count for it is enough
        self._view.hold(inode, held)
        return None if full or cookie <= after else cookie

    @_guarded
    async def releasedir(self, fh: int) -> None:
        self._view.close_directory(self._directories.pop(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """There is nothing to write."""

    # --- files ---

    @_guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        try:
            file = await self._ask(inode, self._view.open, inode)
        except WrongKind:
            raise FUSEError(errno.EISDIR) from None
        number = self._next_handle
        self._next_handle += 1
        self._files[number] = (file, inode)
        return FileInfo(fh=number, keep_cache=True)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        file, inode = self._files[fh]
        # A memoryview serves as well as bytes: pyfuse3 asks for a buffer.
        return await self._ask(inode, file.read, off, size)  # type: ignore[arg-type]

    @_guarded
    async def release(self, fh: int) -> None:
        file, _ = self._files.pop(fh)
        file.close()

    async def flush(self, fh: int) -> None:
        """Told once that there is nothing to flush, the kernel does not ask at every close."""
        raise FUSEError(errno.ENOSYS)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """There is nothing to write."""

    # --- what is refused: `ro` keeps nearly all of it away from here, until root remounts ---

    async def _refuse(self, *_: object) -> NoReturn:
        raise FUSEError(errno.EROFS)

    _refused: Any = _refuse
    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refused
    write = create = setxattr = removexattr = _refused

    def stacktrace(self) -> None:
        """pyfuse3 logs all stacks when a certain attribute of the root is set; nobody may have that done."""


def _dot(inode: int) -> EntryAttributes:
    """`.` and `..`: the kernel takes no more than the type and the number."""
    entry = EntryAttributes()
    entry.st_ino = inode
    entry.st_mode = stat.S_IFDIR
    return entry


# --- mounting ---------------------------------------------------------------------------------------------------------


@contextmanager
def _mounted(view: View, target: str, options: MountOptions) -> Iterator[None]:
    # A signal that comes before anyone listens would leave a mount behind that nobody answers for.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pyfuse3.init(Drive(view), target, options.for_kernel())
    except RuntimeError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        raise MountFailed(f"The drive cannot be mounted at {target} ({error}).") from None
    try:
        yield
    finally:
        pyfuse3.close(unmount=True)


def serve(view: View, target: str, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount and answer until somebody unmounts, or SIGTERM or SIGINT comes; then unmount. For the main thread.

    `ready` is called in a thread when the drive answers. Raises MountFailed, and what `ready` raises of our errors.
    """
    with _mounted(view, target, options):
        failed: list[BackdriveError] = []
        trio.run(_serve, target, ready, failed)
    if failed:
        raise failed[0]


async def _serve(target: str, ready: Callable[[], None], failed: list[BackdriveError]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_await_signal, nursery.cancel_scope)
        nursery.start_soon(_say_ready, target, ready, failed)
        await pyfuse3.main(min_tasks=1, max_tasks=_REQUESTS)
        nursery.cancel_scope.cancel()


async def _await_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        async for _ in signals:
            pyfuse3.terminate()
            await trio.sleep(_GRACE)
            scope.cancel()
            return


async def _say_ready(target: str, ready: Callable[[], None], failed: list[BackdriveError]) -> None:
    def first_look() -> None:
        device = os.stat(target).st_dev
        with suppress(OSError):  # root only, and only to be faster
            bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
            bdi.write_text(str(_READ_AHEAD_KIB))
        ready()

    try:
        await trio.to_thread.run_sync(first_look, abandon_on_cancel=True)
    except BackdriveError as error:
        failed.append(error)
        pyfuse3.terminate()
