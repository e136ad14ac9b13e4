"""What becomes of each entry where something stands in its place already."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cas.model import LinkGroup, Node, NodeKind, Point
from cas.target import posix
from cas.target.attributes import Ids
from cas.target.directory import Directory
from cas.target.names import copy_name
from cas.tasks.requests import Conflict
from cas.tasks.restore_jobs import Action, Anchor, Job


@dataclass(slots=True)
class Blocked:
    """The entry cannot be restored or shall not be: `reason` is for a warning, empty where the request wants it so."""

    reason: str = ""


class Planner:
    """Decides about one entry after the other, in the order of the walk."""

    def __init__(self, point: Point, conflict: Conflict, *, verify: bool) -> None:
        self._point = point
        self._conflict = conflict
        self._verify = verify
        self._anchors: dict[LinkGroup, Anchor] = {}

    def job(self, directory: Directory, node: Node, ids: Ids) -> Job | Blocked:
        """What to do for an entry that is no directory. Raises OSError."""
        seen = None
        if directory.names is not None and node.name in directory.names:
            seen = directory.stat(node.name)
        if seen is None:
            job = Job(directory, node, ids, node.name, Action.CREATE)
        else:
            decided = self._meet(directory, node, ids, seen)
            if isinstance(decided, Blocked):
                return decided
            job = decided
        group = node.link_group
        if group is not None and node.extra is not None and node.extra.link is not None:
            self._join(job, group, node.extra.link.count)
        return job

    def _meet(self, directory: Directory, node: Node, ids: Ids, seen: os.stat_result) -> Job | Blocked:
        """Something is there."""
        if self._conflict is Conflict.SKIP:
            return Blocked()
        if self._conflict is Conflict.COPY:
            return self._copy(directory, node, ids, seen)
        job = Job(directory, node, ids, node.name, Action.CREATE)
        job.seen = seen
        if stat.S_ISDIR(seen.st_mode):
            if not posix.is_empty(directory, node.name):
                return Blocked("A directory that is not empty stands in the way")
            job.empties = True
        elif looks_equal(directory, node.name, node, seen) and (seen.st_nlink == 1 or node.link_group is not None):
            job.action = Action.KEEP
            job.compare = self._verify and node.is_file
        return job

    def _copy(self, directory: Directory, node: Node, ids: Ids, seen: os.stat_result) -> Job:
        """Beside what is there, unless that, or a copy made earlier, is the same."""
        assert directory.names is not None
        name, there, number = node.name, seen, 0
        while not looks_equal(directory, name, node, there):
            number += 1
            name = copy_name(node.name, self._point.started, self._point.utc_offset, number)
            now = directory.stat(name) if name in directory.names else None
            if now is None:
                directory.names.add(name)
                return Job(directory, node, ids, name, Action.CREATE)
            there = now
        job = Job(directory, node, ids, name, Action.LEAVE)
        job.seen = there
        if self._verify and node.is_file:
            job.compare = True
            job.fallback = self.free_name(directory, node.name)
        return job

    def free_name(self, directory: Directory, name: bytes) -> bytes:
        """The first name for a copy that is not taken; it is taken now."""
        assert directory.names is not None
        number = 1
        while (free := copy_name(name, self._point.started, self._point.utc_offset, number)) in directory.names:
            number += 1
        directory.names.add(free)
        return free

    def directory_name(self, directory: Directory, name: bytes) -> tuple[bytes, os.stat_result | None]:
        """A name for a directory where a file has its own, and the directory that a run before made there."""
        assert directory.names is not None
        number = 1
        while True:
            copy = copy_name(name, self._point.started, self._point.utc_offset, number)
            there = directory.stat(copy) if copy in directory.names else None
            if there is None or stat.S_ISDIR(there.st_mode):
                directory.names.add(copy)
                return copy, there
            number += 1

    def _join(self, job: Job, group: LinkGroup, names: int) -> None:
        """Find the other names of a hard-linked file."""
        anchor = self._anchors.get(group)
        if anchor is None:
            if names > 1:
                anchor = self._anchors[group] = job.anchor = Anchor(names)
                if job.action is Action.LEAVE and not job.compare:
                    anchor.settle(job.directory, job.name)
            return
        anchor.left -= 1
        if not anchor.left:
            del self._anchors[group]
        if job.action is not Action.LEAVE:
            job.anchor = anchor
            job.action = Action.LINK
            job.compare = False


def looks_equal(directory: Directory, name: bytes, node: Node, seen: os.stat_result) -> bool:
    """Whether what stands there is the node as far as can be told without reading it. Raises OSError."""
    if stat.S_IFMT(seen.st_mode) != stat.S_IFMT(node.st_mode):
        return False
    if node.is_file:
        return seen.st_size == node.size and seen.st_mtime_ns == node.mtime
    if node.kind == NodeKind.SYMLINK:
        return posix.readlink(directory, name) == node.content
    if node.extra is not None and node.extra.device is not None:
        return (os.major(seen.st_rdev), os.minor(seen.st_rdev)) == node.extra.device
    return True
