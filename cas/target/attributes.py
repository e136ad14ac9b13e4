"""Owners, modes, extended attributes and times, put on in an order that leaves them right.

Changing the owner clears set-uid bits and file capabilities, so it comes first; then the mode, the extended attributes
(POSIX ACLs among them), and the times last. What the target cannot keep is told once a run, not once a file.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import threading
from collections.abc import Callable
from typing import Final

from cas.model import Node, NodeKind, Owner

Warn = Callable[[bytes, str], None]
Ids = tuple[int, int]
Where = int | bytes
"""An open descriptor of the very entry, or a path that leads to it through `/proc/self/fd`."""

SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
ACCESS_ACL: Final = b"system.posix_acl_access"
DEFAULT_ACL: Final = b"system.posix_acl_default"
# Namespaces in which an attribute that the point does not have is taken away. What the system itself puts on every
# file (security labels) stays.
_OURS: Final = (b"user.", b"trusted.", b"system.posix_acl_", b"security.capability")
_REFUSED: Final = (errno.EPERM, errno.EACCES, errno.EINVAL)
_NOT_KEPT: Final = (errno.ENOTSUP, errno.EPERM, errno.EACCES)


def handle_path(descriptor: int) -> bytes:
    """A path to what a descriptor refers to, also one opened with O_PATH: no name can be swapped on the way."""
    return b"/proc/self/fd/%d" % descriptor


def _current_umask() -> int:
    """Without changing it: that would touch every thread."""
    try:
        with open("/proc/self/status", "rb") as lines:
            for line in lines:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError, IndexError):
        pass
    return 0o777  # nothing is taken for granted


class Attributes:
    """Puts attributes on. One for a run; thread safe."""

    def __init__(self, warn: Warn) -> None:
        self.uid: Final = os.geteuid()
        self.gid: Final = os.getegid()
        self.umask: Final = _current_umask()
        self.tell: Final = warn
        self._told: set[object] = set()
        self._lock = threading.Lock()
        self._users: dict[bytes, int | None] = {}
        self._groups: dict[bytes, int | None] = {}
        self._refused: dict[Ids, Ids] = {}  # owners that we may not give away to -> what can be given

    # --- owners ---

    def ids_of(self, owner: Owner) -> Ids:
        """Whom the entry shall belong to here: by name where the name exists here, else by number."""
        uid = gid = None
        if owner.user:
            if owner.user not in self._users:
                self._users[owner.user] = _user_id(owner.user)
            uid = self._users[owner.user]
        if owner.group:
            if owner.group not in self._groups:
                self._groups[owner.group] = _group_id(owner.group)
            gid = self._groups[owner.group]
        return owner.uid if uid is None else uid, owner.gid if gid is None else gid

    def _give(self, where: Where, ids: Ids, have: os.stat_result, path: bytes) -> int:
        """Change the owner where needed. Returns the bits that the mode must lose: set-uid of the wrong user."""
        if (have.st_uid, have.st_gid) == ids:
            return 0
        known = self._refused.get(ids)
        try:
            if known is None:
                os.chown(where, *ids)
                return 0
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            self.tell_once("owner", path, f"The owner could not be restored ({os.strerror(error.errno)})")
        group = ids[1] if known is None else known[1]
        if group != -1:
            try:
                os.chown(where, -1, group)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                group = -1
        if self.uid != 0 and known is None:
            self._refused[ids] = (-1, group)
        lost = 0 if have.st_uid == ids[0] else stat.S_ISUID
        return lost if ids[1] in (group, have.st_gid) else lost | stat.S_ISGID

    # --- all attributes ---

    def put(
        self, where: Where, node: Node, ids: Ids, have: os.stat_result, path: bytes, *, fresh: bool, acl: bool = False
    ) -> None:
        """Everything but the times, on an entry that looks like `have`.

        `fresh` says that we have just made it; then `acl` says that it may have inherited an ACL. Raises OSError for
        what concerns this entry alone.
        """
        lost = self._give(where, ids, have, path)
        if node.kind != NodeKind.SYMLINK:
            mode = node.mode & ~lost
            changed = (have.st_uid, have.st_gid) != ids
            if acl and (node.extra is None or ACCESS_ACL not in node.extra.xattrs):
                _take_away(where, ACCESS_ACL)
                changed = True
            if changed or stat.S_IMODE(have.st_mode) != mode:
                os.chmod(where, mode)
        wanted = node.extra.xattrs if node.extra is not None else {}
        if wanted or not fresh:
            self._put_xattrs(where, wanted, path, fresh=fresh)

    def _put_xattrs(self, where: Where, wanted: dict[bytes, bytes], path: bytes, *, fresh: bool) -> None:
        there: dict[bytes, bytes] = {}
        if not fresh:
            there = _read_xattrs(where)
            for name in there:
                if name not in wanted and name.startswith(_OURS):
                    self._xattr(name, path, lambda name=name: os.removexattr(where, name))  # type: ignore[misc]
        for name, value in wanted.items():
            if there.get(name) != value:
                self._xattr(name, path, lambda name=name, value=value: os.setxattr(where, name, value))  # type: ignore[misc]

    def _xattr(self, name: bytes, path: bytes, change: Callable[[], None]) -> None:
        try:
            change()
        except OSError as error:
            if error.errno == errno.ENODATA:
                return
            text = f"The extended attribute {name.decode(errors='backslashreplace')} could not be restored"
            if error.errno in _NOT_KEPT:
                kind = name if name.startswith((b"system.", b"security.")) else name.split(b".")[0]
                self.tell_once(("xattr", kind, error.errno), path, f"{text} ({os.strerror(error.errno)})")
            else:
                self.tell(path, f"{text}: {os.strerror(error.errno or 0)}")

    def tell_once(self, key: object, path: bytes, reason: str) -> None:
        """Warn of something that will concern many entries alike."""
        with self._lock:
            if key in self._told:
                return
            self._told.add(key)
        self.tell(path, f"{reason}; further ones are not listed")


def put_times(where: Where, node: Node) -> None:
    """The last step. The access time, which no point keeps, becomes the modification time."""
    os.utime(where, ns=(node.mtime, node.mtime))


def inherits_acl(descriptor: int) -> bool:
    """Whether what is made in the directory gets an ACL from it."""
    try:
        os.getxattr(descriptor, DEFAULT_ACL)
    except OSError:
        return False
    return True


def forget_acls(descriptor: int) -> None:
    """Take away what a new directory inherited."""
    _take_away(descriptor, DEFAULT_ACL)
    _take_away(descriptor, ACCESS_ACL)


def _take_away(where: Where, name: bytes) -> None:
    try:
        os.removexattr(where, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise


def _read_xattrs(where: Where) -> dict[bytes, bytes]:
    try:
        return {os.fsencode(name): os.getxattr(where, name) for name in os.listxattr(where)}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA):
            return {}
        raise


def _user_id(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(os.fsdecode(name)).pw_uid
    except KeyError:
        return None


def _group_id(name: bytes) -> int | None:
    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid
    except KeyError:
        return None
