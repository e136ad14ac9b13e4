"""Directories of the target, held by descriptors: below the root every step is taken without following a link.

A directory gets its attributes when everything in and below it is done. Descriptors of deep ancestors are closed while
nobody uses them and opened again step by step, so that depth is not bounded by the number of open files.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import Final

from cas.model import Node
from cas.target.attributes import Attributes, Ids, forget_acls, handle_path, inherits_acl, put_times
from cas.target.names import is_leftover

_OPEN_ROOT: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OPEN_STEP: Final = _OPEN_ROOT | os.O_NOFOLLOW
_PASS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEEP_OPEN_DEPTH: Final = 48
_ENTER: Final = stat.S_IRUSR | stat.S_IWUSR | stat.S_IXUSR

_lock = threading.RLock()  # guards counts and descriptors of all directories; nothing slow is done under it


class Directory:
    """One directory of the target. `hold` and `release` it around work; the last release finishes it."""

    __slots__ = (
        "_holds",
        "_identity",
        "_users",
        "attributes",
        "depth",
        "fd",
        "have",
        "inherits",
        "mode_before",
        "name",
        "names",
        "natural",
        "parent",
        "wish",
    )

    def __init__(self, attributes: Attributes, parent: Directory | None, name: bytes, fd: int) -> None:
        """Takes over `fd`; -1 stands for a directory that a dry run would make. The maker has the first hold."""
        self.attributes = attributes
        self.parent = parent
        self.name = name  # the root's is its whole path
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.fd = fd
        self.names: set[bytes] | None = None  # what was there before us; None in a directory that we made
        self.wish: tuple[Node, Ids] | None = None  # the attributes it shall get
        self.mode_before: int | None = None  # a mode that we changed to get in, to be put back
        self.inherits = False  # new entries get an ACL from it
        self._holds = 1  # reasons to keep it unfinished: the walk, work in it, directories in it
        self._users = 1  # those of them that need the descriptor
        self.have: os.stat_result | None = None
        self._identity = (0, 0)
        self.natural: Ids = (-1, -1)  # whom a new file belongs to without a change
        if fd >= 0:
            self.look()
        if parent is not None:
            with _lock:
                parent._holds += 1

    def look(self) -> None:
        """Take note of what the directory is like now."""
        self.have = have = os.fstat(self.fd)
        self._identity = (have.st_dev, have.st_ino)
        gid = have.st_gid if have.st_mode & stat.S_ISGID else self.attributes.gid
        # With another group than ours, a mount option may decide whom new files belong to.
        self.natural = (self.attributes.uid, gid if have.st_gid in (gid, self.attributes.gid) else -1)

    @property
    def path(self) -> bytes:
        """Where it is, for messages."""
        names = []
        directory: Directory | None = self
        while directory is not None:
            names.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(names)) if names[-1] != b"/" else b"/" + b"/".join(reversed(names[:-1]))

    def path_of(self, name: bytes) -> bytes:
        """Where an entry is, for messages."""
        path = self.path
        return path + name if path.endswith(b"/") else path + b"/" + name

    # --- holding ---

    def hold(self) -> None:
        """One more reason to keep it open and unfinished; the caller has one already."""
        with _lock:
            self._holds += 1
            self._users += 1

    def rest(self) -> None:
        """The caller keeps its hold but does without the descriptor until it calls `wake`."""
        with _lock:
            self._users -= 1
            if not self._users and self.depth > _KEEP_OPEN_DEPTH:
                self._close()

    def wake(self) -> None:
        """The opposite of `rest`. Where the directory is not to be found any more, all work in it will fail."""
        with _lock:
            self._users += 1
            if self.fd < 0 and self.have is not None:
                try:
                    self.fd = self._reopen()
                except OSError:
                    pass  # with the descriptor -1 every call raises OSError

    def release(self, *, resting: bool = False) -> None:
        """The opposite of `hold`, or with `resting` of `hold` and `rest`.

        The last one puts on the attributes and closes the directory, and so on upwards.
        """
        with _lock:
            self._users -= not resting
            if not self._users and self._holds > 1 and self.depth > _KEEP_OPEN_DEPTH:
                self._close()
        directory: Directory | None = self
        while directory is not None:
            with _lock:
                directory._holds -= 1
                if directory._holds:
                    return
            directory._finish()
            directory = directory.parent

    def borrow(self) -> int:
        """A descriptor of its own for someone who does not hold it, even when it is finished. Close it."""
        with _lock:
            return os.dup(self.fd) if self.fd >= 0 else self._reopen()

    def _reopen(self) -> int:
        """Step down again from the nearest ancestor that is open. Raises OSError: ESTALE where it is another one."""
        way = [self]
        while way[-1].fd < 0:
            above = way[-1].parent
            if above is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            way.append(above)
        fd = way.pop().fd
        owned = False
        while way:
            step = way.pop()
            try:
                below = os.open(step.name, _PASS if way else OPEN_STEP, dir_fd=fd)
            finally:
                if owned:
                    os.close(fd)
            fd, owned = below, True
        have = os.fstat(fd)
        if (have.st_dev, have.st_ino) != self._identity:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _finish(self) -> None:
        if self.have is None:
            return
        try:
            try:
                with _lock:
                    if self.fd < 0:
                        self.fd = self._reopen()
                if self.wish is not None:
                    node, ids = self.wish
                    self.attributes.put(self.fd, node, ids, os.fstat(self.fd), self.path, fresh=self.names is None)
                    put_times(self.fd, node)
                elif self.mode_before is not None:
                    os.fchmod(self.fd, self.mode_before)
            finally:
                with _lock:
                    self._close()
        except OSError as error:
            self.attributes.tell(self.path, f"The directory's attributes could not be restored: {why(error)}")

    # --- entries ---

    def list(self, *, clean: bool) -> set[bytes]:
        """The names in it; with `clean`, what killed runs left behind is removed on the way."""
        names = {os.fsencode(name) for name in os.listdir(self.fd)}
        for name in [name for name in names if name.startswith(b".backdrive-") and is_leftover(name)]:
            if clean:
                try:
                    os.unlink(name, dir_fd=self.fd)
                except OSError:
                    continue
            names.discard(name)
        return names

    def stat(self, name: bytes) -> os.stat_result | None:
        """What stands there under the name, a link being a link; None where nothing does."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def enter(self, name: bytes, *, dry: bool = False) -> Directory:
        """A directory that exists in this one. Raises OSError, also where the name is a link."""
        mode_before = None
        try:
            fd = os.open(name, OPEN_STEP, dir_fd=self.fd)
        except PermissionError:
            if dry:
                raise
            fd, mode_before = self._force(name)
        child = Directory(self.attributes, self, name, fd)
        child.mode_before = mode_before
        try:
            assert child.have is not None
            if not dry and child.have.st_uid == self.attributes.uid != 0 and ~child.have.st_mode & _ENTER:
                child.mode_before = stat.S_IMODE(child.have.st_mode)
                os.fchmod(fd, child.mode_before | _ENTER)
            child.names = child.list(clean=not dry)
            child.inherits = inherits_acl(fd)
        except BaseException:
            child.release()
            raise
        return child

    def _force(self, name: bytes) -> tuple[int, int]:
        """Open a directory of our own that lets not even us in, and tell the mode it had."""
        handle = os.open(name, _PASS, dir_fd=self.fd)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.chmod(handle_path(handle), mode | _ENTER)
            return os.open(handle_path(handle), _OPEN_ROOT), mode
        finally:
            os.close(handle)

    def make(self, name: bytes, node: Node, ids: Ids) -> Directory:
        """A new directory in this one, which will get the node's attributes. Raises OSError."""
        os.mkdir(name, node.mode & 0o777 | _ENTER, dir_fd=self.fd)
        child = Directory(self.attributes, self, name, os.open(name, OPEN_STEP, dir_fd=self.fd))
        child.wish = (node, ids)
        if self.inherits:
            try:
                forget_acls(child.fd)
                os.fchmod(child.fd, node.mode & 0o777 | _ENTER)  # the inherited ACL has cut the mode of mkdir
            except BaseException:
                child.release()
                raise
        return child

    def make_up(self, name: bytes) -> Directory:
        """What stands for a new directory in a dry run."""
        return Directory(self.attributes, self, name, -1)


def open_root(attributes: Attributes, path: bytes) -> Directory:
    """The directory into which is restored, which exists. Links in its own path are the caller's. Raises OSError."""
    root = Directory(attributes, None, path, os.open(path, _OPEN_ROOT))
    root.inherits = inherits_acl(root.fd)
    return root


def why(error: OSError) -> str:
    """The reason as the system words it."""
    return os.strerror(error.errno) if error.errno else str(error)
