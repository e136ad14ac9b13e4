"""A vault in a directory: an object is a file at its own name.

How the promises are kept. An object is written to `tmp/` inside the vault, synced, and only then given its name, so a
name never shows a part of an object. Giving it the name is a hard link, which fails where the name exists; that is what
makes it write-once between processes and machines. Then the directory that holds the name is synced, and any directory
that had to be made, up to the root.

On Windows a rename does what the link does, for it refuses an existing target. On other systems a rename replaces the
target, and Python does not offer renameat2 with RENAME_NOREPLACE. So where a file system has no hard links (FAT,
exFAT), the check that the name is free and the rename happen under a lock of the `tmp` directory, which the kernel
frees if the process dies. There, write-once holds among the programs of one machine.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from typing_extensions import Buffer

from cas.errors import (
    BackdriveError,
    InvalidRequest,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    VaultMissing,
    VaultReadOnly,
    VaultUnavailable,
)
from cas.vault.base import VaultEntry
from cas.vault.names import FOLDER, HEADER, TEMPORARY, check_name, check_prefix, check_range, is_name

if sys.platform != "win32":
    import fcntl

_STALE = 24 * 3600  # seconds; no put takes this long, so an older temporary file belongs to a killed writer
_STEP = 1 << 20  # bytes compared at once with an object that is there already
_TEMPORARY_FILE = re.compile(r"[0-9]+-[0-9a-f]{16}")

_BINARY = getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | _BINARY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK})
_IN_USE = frozenset({32, 33})  # ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION: Python calls both EACCES, yet they pass

# What a file system or Windows puts into the root of a new disk by itself: such a disk still counts as empty.
_FURNITURE = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})


def url_of(path: str) -> str:
    """The `file:` URL of an absolute path. A UNC path keeps its host in the path: `file:////host/share`."""
    slashed = path.replace(os.sep, "/")
    return "file://" + ("" if slashed.startswith("/") else "/") + urllib.parse.quote(os.fsencode(slashed), safe="/:")


class LocalVault:
    """The vault protocol over a directory. Keeps no descriptor open between calls."""

    def __init__(self, root: str) -> None:
        """`root` is not looked at before the first call; see `open` and `create`."""
        self._root = os.path.abspath(root)
        self._url = url_of(self._root)
        self._tmp = os.path.join(self._root, TEMPORARY)
        self._durable: set[str] = set()  # directories that exist and whose own names are synced
        self._swept = False

    @classmethod
    def open(cls, root: str) -> LocalVault:
        """The vault that is there. Raises VaultMissing, VaultUnavailable."""
        vault = cls(root)
        with suppress(ObjectMissing):  # a vault that has lost only its header
            vault.size(HEADER)
        return vault

    @classmethod
    def create(cls, root: str, header: bytes) -> LocalVault:
        """Make a vault with `header` as its `vault.json`, and the directory and its parents where they are missing.

        Raises InvalidRequest for a directory that is a vault already or holds something else, VaultReadOnly, NoSpace,
        VaultUnavailable.
        """
        vault = cls(root)
        with vault._translated(writing=True):
            try:
                _make_root(vault._root)
                found = set(os.listdir(vault._root)) - _FURNITURE
            except (FileExistsError, NotADirectoryError):
                raise InvalidRequest(f"{vault._root} is not a directory, or lies below a file.") from None
            if HEADER not in found and not found <= vault._leftovers():
                raise InvalidRequest(
                    f"The directory {vault._root} is not empty and not a vault.", "Choose a new or an empty directory."
                )
        try:
            if HEADER in found:
                raise ObjectExists(vault._url, HEADER)
            vault.put(HEADER, [header])
        except ObjectExists:
            raise InvalidRequest(f"{vault._url} is already a vault.") from None
        return vault

    @property
    def url(self) -> str:
        return self._url

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        check_name(name)
        views = [memoryview(part).cast("B") for part in parts]
        with self._translated(name, writing=True):
            try:
                self._put(name, views)
            except FileNotFoundError:
                # A remembered directory is gone: the vault was moved, unmounted or emptied. Look again, once.
                self._durable.clear()
                self._put(name, views)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(offset, length)
        with self._translated(name):
            fd = os.open(self._path(name), _READ)
            try:
                left = self._file_size(name, os.fstat(fd)) - offset
                return _read_at(fd, max(left if length is None else min(left, length), 0), offset)
            finally:
                os.close(fd)

    def size(self, name: str) -> int:
        check_name(name)
        with self._translated(name):
            return self._file_size(name, os.stat(self._path(name)))

    def list(self, prefix: str) -> Iterator[VaultEntry]:
        check_prefix(prefix)
        return self._list(prefix)

    def delete(self, name: str) -> None:
        """Remove the object. Not synced: if a power cut brings it back, it is only garbage that collect finds again."""
        check_name(name)
        with self._translated(name, writing=True):
            try:
                os.unlink(self._path(name))
            except IsADirectoryError:
                pass  # part of other objects' names: there is no object of this name
            except (FileNotFoundError, NotADirectoryError):
                self._require()

    def close(self) -> None:
        """Nothing is kept open."""

    # --- writing ---------------------------------------------------------------------------------------------------

    def _put(self, name: str, views: Sequence[memoryview]) -> None:
        if self._tmp not in self._durable and name != HEADER:
            self._require()  # never write into a mount point whose file system is away
        final = self._path(name)
        directory = os.path.dirname(final)
        self._make_directory(self._tmp)
        self._make_directory(directory)
        temporary = os.path.join(self._tmp, f"{os.getpid()}-{os.urandom(8).hex()}")
        try:
            self._write(temporary, views)
            try:
                self._publish(temporary, final)
            except FileExistsError:
                if not _holds(final, views):
                    raise ObjectExists(self._url, name) from None
            # Also where it was there already: whoever wrote it may not have come as far as this.
            _sync_directory(directory)
        finally:
            with suppress(OSError):
                os.unlink(temporary)

    def _write(self, path: str, views: Sequence[memoryview]) -> None:
        """Make the file `path` of `views`, durable but for its name."""
        fd = os.open(path, _CREATE, 0o666)  # contents are sealed: who else may read them is for the umask to say
        try:
            if not self._swept:  # before the first byte is written: a full disk may be full of just these
                self._swept = True
                self._sweep(os.fstat(fd).st_mtime)
            for view in views:
                while view.nbytes:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def _publish(self, temporary: str, final: str) -> None:
        """Give the file its name, whole and at once. Raises FileExistsError where the name is taken."""
        if sys.platform == "win32":
            os.rename(temporary, final)
        else:
            try:
                os.link(temporary, final)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with _locked(self._tmp):
                    if os.path.lexists(final):
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final) from None
                    os.rename(temporary, final)

    def _make_directory(self, directory: str) -> None:
        """See that `directory`, below the root, exists durably: at most once for each, then from memory."""
        if directory == self._root or directory in self._durable:
            return
        parent = os.path.dirname(directory)
        self._make_directory(parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        # Synced even where it existed: the writer that made it may be about to, and our object would go with it.
        _sync_directory(parent)
        self._durable.add(directory)

    def _sweep(self, now: float) -> None:
        """Remove what killed writers left. `now`, in seconds, is by the vault's clock: the time of a file just made."""
        with suppress(OSError), os.scandir(self._tmp) as entries:
            for entry in entries:
                with suppress(OSError):  # another writer sweeps too, or the file is not ours to remove
                    if _TEMPORARY_FILE.fullmatch(entry.name) and now - entry.stat().st_mtime > _STALE:
                        os.unlink(entry.path)

    def _leftovers(self) -> set[str]:
        """`tmp`, where a killed `create` left it and only files of its own in it."""
        with suppress(FileNotFoundError, NotADirectoryError):
            if all(map(_TEMPORARY_FILE.fullmatch, os.listdir(self._tmp))):
                return {TEMPORARY}
        return set()

    # --- looking ---------------------------------------------------------------------------------------------------

    def _list(self, prefix: str) -> Iterator[VaultEntry]:
        with self._translated():
            self._require()
            pending = [prefix]
            while pending:
                directory = pending.pop()
                try:
                    with os.scandir(self._path(directory)) as scan:
                        entries = [*scan]  # read out first, so that a listing left half-way holds nothing open
                except (FileNotFoundError, NotADirectoryError):
                    self._require()
                    continue
                for entry in entries:
                    name = directory + entry.name
                    if not is_name(name):
                        continue  # `tmp`, or something foreign that no `get` could ask for
                    if entry.is_dir():
                        pending.append(name + "/")
                    elif entry.is_file():
                        with suppress(FileNotFoundError):  # deleted since
                            yield VaultEntry(name, entry.stat().st_size)

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)

    def _file_size(self, name: str, status: os.stat_result) -> int:
        """Bytes in the object; a directory is none."""
        if not stat.S_ISREG(status.st_mode):
            raise ObjectMissing(self._url, name)
        return status.st_size

    def _present(self) -> bool:
        """False where the vault is clearly gone. Where that cannot be seen, the operation's own error says more.

        A vault that has lost only its header is damaged, not gone: what is in it can still be read.
        """
        for name in (HEADER, FOLDER):
            try:
                os.stat(self._path(name))
            except OSError as error:
                if error.errno in _ABSENT:
                    continue
            return True
        return False

    def _require(self) -> None:
        if not self._present():
            raise VaultMissing(self._url)

    # --- errors ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _translated(self, name: str = "", writing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._translate(error, name, writing) from error

    def _translate(self, error: OSError, name: str, writing: bool) -> BackdriveError:
        """The error of ours for one of the system's. `name` is the object concerned, if one is."""
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            return NoSpace("vault", self._root)
        if error.errno in _ABSENT:
            if not self._present():
                return VaultMissing(self._url)
            if name and not writing:
                return ObjectMissing(self._url, name)
            if error.errno == errno.ENOTDIR:
                return ObjectExists(self._url, name)  # an object has the name of a directory that this one needs
        if writing and error.errno in _REFUSED and getattr(error, "winerror", None) not in _IN_USE:
            return VaultReadOnly(self._url, reason)
        about = f" for {name}" if name else ""
        return VaultUnavailable(self._url, f"The vault {self._url} gave an error{about}: {reason}.")


# --- the system, where platforms differ ------------------------------------------------------------------------------


def _read_at(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset`, fewer only where the file ends. Moves the descriptor's position on Windows."""
    pieces = []
    while length > 0:
        if sys.platform == "win32":
            os.lseek(fd, offset, os.SEEK_SET)
            piece = os.read(fd, length)
        else:
            piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _holds(path: str, views: Sequence[memoryview]) -> bool:
    """Whether `path` is a file of exactly the bytes of `views`."""
    if os.path.isdir(path):  # a question of its own, for Windows does not open directories
        return False
    fd = os.open(path, _READ)
    try:
        if os.fstat(fd).st_size != sum(view.nbytes for view in views):
            return False
        offset = 0
        for view in views:
            for start in range(0, view.nbytes, _STEP):
                piece = view[start : start + _STEP]
                if _read_at(fd, piece.nbytes, offset) != piece:
                    return False
                offset += piece.nbytes
        return True
    finally:
        os.close(fd)


def _make_root(path: str) -> None:
    """Make `path` and its missing parents, durably."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_root(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):  # where it is one, another process was as quick
            raise
    _sync_directory(parent)


def _sync_directory(path: str) -> None:
    """Make the names in a directory durable. Windows has no such call: NTFS keeps names in its journal."""
    if sys.platform != "win32":
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems have nothing to sync in a directory
                raise
        finally:
            os.close(fd)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the directory's lock against other threads and processes; without one where the file system has no locks."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
