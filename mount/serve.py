"""The process of a drive: opens the repository, mounts, answers until it is unmounted.

`python -m mount.serve` reads a `DriveRequest` from standard input, and writes one JSON string to standard output:
"ready" when the drive answers, or else what went wrong. Standard error is the drive's log.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cas.errors import BackdriveError, Damaged, FormatTooNew, MountFailed, ObjectDamaged, ObjectMissing, PointNotFound
from cas.ids import RepositoryId
from cas.model import Point
from cas.repository import Repository, check_vault
from cas.vault.locate import open_vault
from mount.drives import (
    ALL_POINTS,
    Drive,
    DriveRequest,
    prepare_target,
    process_birth,
    record_path,
    remove_target,
    write_record,
)
from mount.timeline import Timeline
from mount.view import View

if TYPE_CHECKING:
    from types import ModuleType

_log = logging.getLogger("backdrive.drive")


class _Points:
    """All points of a repository, of which each is read once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._known: dict[str, Point | None] = {}  # by object name; None: it cannot be read
        self._told = ""  # the fault logged last

    def __call__(self) -> list[Point]:
        """Oldest first. Raises the vault's errors and CacheUnusable."""
        try:
            points = self._look()
        except BackdriveError as error:
            if error.args[0] != self._told:
                self._told = error.args[0]
                _log.error("new points cannot be looked for: %s", error.args[0])
            raise
        self._told = ""
        return points

    def _look(self) -> list[Point]:
        repository = self._repository
        names = repository.point_names()
        new = [name for name in names if name not in self._known]
        if new:
            for problem in repository.refresh().errors:
                _log.error("%s", problem.args[0])
        for name in new:
            try:
                self._known[name] = repository.read_point(name)
            except (Damaged, FormatTooNew, ObjectMissing) as error:
                _log.error("%s", error.args[0])
                self._known[name] = None
        self._known = {name: self._known[name] for name in names}
        points = [point for point in self._known.values() if point is not None]
        return sorted(points, key=lambda point: (point.started, point.id))


def _fuse() -> ModuleType:
    """The adapter to the kernel. Raises MountFailed where the system has none."""
    if not sys.platform.startswith("linux"):
        raise MountFailed("Drives need Linux and FUSE so far.", "Use 'backdrive restore'.")
    try:
        from mount import fuse
    except ImportError as error:
        raise MountFailed(
            f"Drives need the Python package pyfuse3 ({error}).",
            "Install the system's package fuse3 and backdrive with its extra 'fuse'.",
        ) from None
    if not os.path.exists("/dev/fuse"):
        raise MountFailed("This system has no /dev/fuse.", "Load the kernel's module fuse, or use 'backdrive restore'.")
    return fuse


def run(request: DriveRequest, ready: Callable[[], None] = lambda: None) -> None:
    """Mount, and answer until somebody unmounts or SIGTERM or SIGINT comes. For the main thread.

    Raises MountFailed, PointNotFound, and what opening a repository raises.
    """
    fuse = _fuse()
    vault = open_vault(request.vault)
    try:
        try:
            check_vault(vault)
        except (ObjectDamaged, ObjectMissing) as error:
            _log.error("%s", error.args[0])  # what is in the vault can be read all the same
        with Repository(vault, RepositoryId(request.repository), request.secret, request.cache) as repository:
            for problem in repository.refresh().errors:
                _log.error("%s", problem.args[0])
            if request.point is None:
                root: Point | Timeline = Timeline(_Points(repository))
            else:
                root = _point(repository, request.point)
            view = View(repository.reader(request.cache_bytes), root, owner=(os.getuid(), os.getgid()))
            try:
                _mount(fuse, view, request, ready)
            finally:
                view.close()
    finally:
        vault.close()


def _point(repository: Repository, point: str) -> Point:
    """A point by its whole id: the others are not looked at, however many there are."""
    try:
        return repository.read_point(repository.layout.points + point)
    except ObjectMissing:
        raise PointNotFound(f"There is no recovery point {point}.") from None


def _mount(fuse: ModuleType, view: View, request: DriveRequest, ready: Callable[[], None]) -> None:
    target, made = prepare_target(request.target)
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
    )
    allow_other = os.geteuid() == 0 if request.allow_other is None else request.allow_other

    def record() -> None:
        write_record(request.records, drive)
        _log.info("%s is mounted at %s", drive.point, target)
        ready()

    try:
        fuse.serve(view, target, fuse.MountOptions(allow_other=allow_other), record)
        _log.info("%s is unmounted from %s", drive.point, target)
    finally:
        record_path(request.records, target).unlink(missing_ok=True)
        remove_target(drive)


def main() -> None:
    """The background process."""
    request = DriveRequest.decode(sys.stdin.buffer.read())
    target = os.fspath(request.target).replace("%", "%%")  # several drives may share a log
    logging.basicConfig(format=f"%(asctime)s %(levelname)s {target} %(message)s", level=logging.INFO)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(nothing, 1)

    def answer(text: str) -> None:
        try:
            os.write(answers, json.dumps(text).encode() + b"\n")
            os.close(answers)
        except OSError:
            pass  # whoever asked has gone away: the drive stays

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # seconds: the event loop must not wait long for threads that read ahead
    code = 0
    try:
        run(request, lambda: answer("ready"))
    except BackdriveError as error:
        _log.error("%s", error)
        answer(str(error))
        code = 1
    except Exception as error:  # noqa: BLE001 - logged with its traceback, and told to whoever waits
        _log.exception("the drive ended")
        answer(f"The drive's process failed: {error!r}.")
        code = 1
    logging.shutdown()
    os._exit(code)  # without waiting for threads whose vault does not answer


if __name__ == "__main__":
    main()
