"""What was planned for each entry on its way back."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from enum import Enum, auto

from cas.model import Node
from cas.target.attributes import Ids
from cas.target.directory import Directory
from cas.tasks.restore_data import Run


class Action(Enum):
    """What to do for an entry."""

    CREATE = auto()
    KEEP = auto()  # it is there: put its attributes right
    LEAVE = auto()  # it is there: do not touch it
    LINK = auto()  # one more name of a file that was restored before


class Anchor:
    """The first restored name of a hard-linked file, to which the others are linked."""

    __slots__ = ("directory", "done", "left", "name")

    def __init__(self, names: int) -> None:
        self.done = threading.Event()
        self.directory: Directory | None = None  # None when done: the first name could not be restored
        self.name = b""
        self.left = names - 1

    def settle(self, directory: Directory, name: bytes) -> None:
        """The file stands there."""
        self.directory, self.name = directory, name
        self.done.set()


class Job:
    """One entry to restore into a directory. For a file `runs` is its data, or None where it is still to be found."""

    __slots__ = (
        "action",
        "anchor",
        "compare",
        "directory",
        "empties",
        "fallback",
        "ids",
        "name",
        "node",
        "runs",
        "seen",
    )

    def __init__(self, directory: Directory, node: Node, ids: Ids, name: bytes, action: Action) -> None:
        self.directory = directory
        self.node = node
        self.ids = ids
        self.name = name
        self.action = action
        self.runs: Sequence[Run] | None = None
        self.seen: os.stat_result | None = None  # what stands there
        self.compare = False  # whether what stands there is equal is still to be found out
        self.fallback = name  # where to create it where it is not
        self.empties = False  # an empty directory is in the way
        self.anchor: Anchor | None = None  # whom to link to; or, for CREATE, KEEP and LEAVE, whom to settle
