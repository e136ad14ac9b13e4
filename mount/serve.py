"""The process of a drive: opens the repository, mounts, answers until it is unmounted.

`python -m mount.serve` reads a `DriveRequest` from standard input, and writes one JSON document to standard output:
how many points it shows when the drive answers, or else what went wrong. Standard error is the drive's log.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from cas.errors import (
    BackdriveError,
    MountFailed,
    ObjectDamaged,
    ObjectMissing,
)
from cas.ids import ChunkId, PointId, RepositoryId
from cas.model import Point
from cas.repository import Repository, check_vault
from cas.store.reader import ReaderCounts
from cas.tasks.browse import resolve
from cas.vault.base import Vault
from cas.vault.locate import open_vault
from mount.drives import DriveRequest, Ready, answer_of, prepare_target
from mount.points import Keeper, PointSource, one_point
from mount.records import (
    ALL_POINTS,
    Counters,
    Drive,
    Publisher,
    boot_id,
    no_room,
    process_birth,
    remove_record,
    remove_target,
    shown,
    write_record,
)
from mount.timeline import Layout, Timeline
from mount.view import View

if TYPE_CHECKING:
    from types import ModuleType

_CACHE_FOR_A_READ: Final = 12 << 20  # bytes
_FEWEST_THREADS: Final = 4
_MOST_THREADS: Final = 24

_log = logging.getLogger("backdrive.drive")

_DEVICE: Final = "/dev/fuse"
_FUSE_CONF: Final = Path("/etc/fuse.conf")


def _fuse() -> ModuleType:
    """The adapter to the kernel. Raises MountFailed where the system has none."""
    if not sys.platform.startswith("linux"):
        raise MountFailed("Drives need Linux and FUSE so far.", "Use 'backdrive restore'.")
    from mount import fuse

    trouble = _device_trouble()
    if trouble:
        raise MountFailed(trouble, "Load the kernel's module fuse, or use 'backdrive restore'.")
    return fuse


def _device_trouble() -> str:
    """Why no drive can be opened on this system, or ""."""
    if not os.path.exists(_DEVICE):
        return f"This system has no {_DEVICE}."
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # fusermount3 may be allowed what other programs of this user are not.
        if os.geteuid() == 0 or error.errno in (errno.ENODEV, errno.ENXIO):
            return f"{_DEVICE} cannot be opened: {error.strerror}."
    return ""


def _check_sharing(allow_other: bool) -> None:
    """Raises MountFailed where this user may not let other users into a drive."""
    if not allow_other or os.geteuid() == 0:
        return
    try:
        lines = _FUSE_CONF.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    if not any(line.strip() == "user_allow_other" for line in lines):
        raise MountFailed(
            f"Only root may let other users into a drive here: {_FUSE_CONF} does not say user_allow_other.",
            f"Have root add that line to {_FUSE_CONF}, or mount without --allow-other.",
        )


def run(request: DriveRequest, ready: Callable[[Ready], None] = lambda told: None) -> None:
    """Mount, and answer until somebody unmounts or SIGTERM, SIGINT or SIGHUP comes. For the main thread.

    `ready` is told which points are shown. Raises MountFailed, PointNotFound, PathNotFound, NoSpace, and what
    opening a repository raises.
    """
    fuse = _fuse()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # of the terminal that a drive in the foreground is on
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    vault = _open_vault(request)
    try:
        try:
            check_vault(vault)
        except (ObjectDamaged, ObjectMissing) as error:
            _log.error("%s", error.args[0])  # what is in the vault can be read all the same
        with Repository(vault, RepositoryId(request.repository), request.secret, request.cache) as repository:
            for problem in repository.refresh().errors:
                _log.error("%s", problem.args[0])
            _serve(fuse, repository, request, _needed(vault, request), ready)
    finally:
        vault.close()


def _serve(
    fuse: ModuleType, repository: Repository, request: DriveRequest, needed: list[Path], ready: Callable[[Ready], None]
) -> None:
    keeper = Keeper(repository, request.machine)
    try:
        root, told = _root(repository, request, keeper)
        keeper.start()
        reader = repository.reader(request.cache_bytes)
        view = View(reader, root, owner=_owner(request))
        try:
            _mount(fuse, view, reader.counts, request, needed, lambda: ready(told))
        finally:
            view.close()
    finally:
        keeper.close()


def _open_vault(request: DriveRequest) -> Vault:
    """The vault, behind the cache on disk where one is asked for."""
    vault = open_vault(request.vault)
    if request.disk_cache is None:
        return vault
    from cas.vault.caching import CachingVault

    return CachingVault(vault, request.disk_cache, request.disk_cache_bytes)


def _check_writable(directory: Path) -> None:
    """Make the directory of the cache on disk, where there is none. Raises MountFailed, NoSpace."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        reason = "it is not a directory" if isinstance(error, FileExistsError) else error.strerror
        raise no_room(error, directory) or MountFailed(
            f"The cache on disk cannot be kept in {shown(directory)}: {reason}.", "Give --disk-cache another directory."
        ) from None


def _needed(vault: Vault, request: DriveRequest) -> list[Path]:
    """The directories that the drive reads and writes while it is open."""
    parts = urlsplit(vault.url)
    places = [Path(os.fsdecode(unquote_to_bytes(parts.path)))] if parts.scheme == "file" else []
    return [*places, request.cache, request.records, *([request.disk_cache] if request.disk_cache else [])]


def _owner(request: DriveRequest) -> tuple[int, int]:
    """Who owns the folders above the points."""
    uid = os.getuid() if request.uid is None else request.uid
    return uid, os.getgid() if request.gid is None else request.gid


def _root(repository: Repository, request: DriveRequest, keeper: Keeper) -> tuple[Point | Timeline, Ready]:
    """What the drive shows, and what to tell of it.

    Raises PointNotFound, PathNotFound, MountFailed and the errors of reading.
    """
    if request.point is None:
        layout = Layout(request.layout)
        # Samba looks for its directories in one place, so a machine of its own has them there.
        flat = layout is Layout.GMT and request.only.machine is not None
        source = PointSource(repository, request.only, keeper)
        timeline = Timeline(source, layout=layout, flat=flat)
        machine = request.only.machine
        unknown = machine is not None and not source.has_machine(machine)
        return timeline, Ready(timeline.count, tuple(source.machines()) if unknown else ())
    point = one_point(repository, PointId(request.point), keeper)
    return point if request.folder is None else _rooted(repository, point, request.folder), Ready(1)


def _rooted(repository: Repository, point: Point, folder: str) -> Point:
    """The point as if a folder of it were its root."""
    node, owner = resolve(repository.reader(), point, os.fsencode(folder))
    if not node.is_directory:
        raise MountFailed(
            f"{shown(folder)} is no directory in the recovery point {point.id[:8]}.", "Name the one it is in."
        )
    return msgspec.structs.replace(point, root=ChunkId(node.content), root_node=node, root_owner=owner)


def _shows(request: DriveRequest) -> str:
    """What a record says of the part of the repository that is shown."""
    if request.folder is not None:
        return request.folder
    parts: Sequence[str] = [request.layout if request.layout != Layout.TIME else "", str(request.only)]
    return "" if request.point is not None else ", ".join(filter(None, parts))


def _threads(cache_bytes: int) -> int:
    """How many reads may wait for the vault at once: each uses a block, and the cache must have room for others."""
    return min(max(cache_bytes // _CACHE_FOR_A_READ, _FEWEST_THREADS), _MOST_THREADS)


def _mount(
    fuse: ModuleType,
    view: View,
    costs: ReaderCounts,
    request: DriveRequest,
    needed: list[Path],
    ready: Callable[[], None],
) -> None:
    allow_other = os.geteuid() == 0 if request.allow_other is None else request.allow_other
    _check_sharing(allow_other)
    options = fuse.MountOptions(allow_other, request.uid, request.gid, request.umask)
    target, made = prepare_target(request.target, needed)
    pid = os.getpid()
    drive = Drive(
        pid=pid,
        birth=process_birth(pid) or 0,
        target=target,
        point=request.point or ALL_POINTS,
        since=time.time_ns(),
        vault=request.vault_name or request.vault,
        made_target=made,
        log="" if request.log is None else os.fspath(request.log),
        boot=boot_id(),
        shows=_shows(request),
    )
    asked = fuse.Counters()

    def count() -> Counters:
        return Counters(asked.requests, asked.reads, asked.read_bytes, asked.errors, costs.hits, costs.misses)

    publisher = Publisher(request.records, drive, count)

    def record() -> None:
        write_record(request.records, drive)
        publisher.start()
        _log.info("%s is mounted at %s", drive.point, shown(target))
        ready()

    try:
        if request.disk_cache is not None:
            _check_writable(request.disk_cache)  # only now that it is known not to be below the target
        fuse.serve(view, target, options, record, asked, _threads(request.cache_bytes))
        _log.info("%s is unmounted from %s", drive.point, shown(target))
    finally:
        publisher.close()
        remove_record(request.records, target)
        remove_target(drive)


def main() -> None:
    """The background process."""
    request = DriveRequest.decode(sys.stdin.buffer.read())
    target = shown(request.target).replace("%", "%%")  # several drives may share a log
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {target} %(message)s", level=logging.INFO)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(nothing, 1)

    def answer(**values: object) -> None:
        try:
            os.write(answers, json.dumps(values).encode() + b"\n")
            os.close(answers)
        except OSError:
            pass  # whoever asked has gone away: the drive stays

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # seconds: the event loop must not wait long for threads that read ahead
    code = 0
    try:
        run(request, lambda told: answer(points=told.points, machines=told.machines))
    except BackdriveError as error:
        _log.error("%s", error)
        answer(**answer_of(error))
        code = 1
    except Exception as error:  # noqa: BLE001 - logged with its traceback, and told to whoever waits
        _log.exception("the drive ended")
        answer(**answer_of(MountFailed(f"The drive's process failed: {error!r}.", "Its log tells where.")))
        code = 1
    logging.shutdown()
    os._exit(code)  # without waiting for threads whose vault does not answer


if __name__ == "__main__":
    main()
