"""What to protect, as a tree of ways: everything below some paths, and nothing but the ways to them above."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Plan:
    """What to protect below a directory: everything (`whole`), or only the ways that lead to it."""

    whole: bool = False
    below: dict[bytes, Plan] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """The directory is only on the way to something."""
        return bool(self.below) and not self.whole


EVERYTHING = Plan(whole=True)
NOTHING = Plan()


def plan_paths(paths: list[bytes]) -> Plan:
    """The ways to all paths; one inside another is part of it."""
    root = Plan()
    for path in paths:
        plan = root
        for part in path.split(b"/"):
            if part:
                plan = plan.below.setdefault(part, Plan())
        plan.whole = True
    return root


def normalise_paths(paths: list[bytes]) -> list[bytes]:
    """Absolute and sorted, without duplicates and those inside others. Links are resolved, but not at the end."""
    found: set[bytes] = set()
    for path in paths:
        absolute = os.path.abspath(path)
        parent, name = os.path.split(absolute)
        found.add(os.path.join(os.path.realpath(parent), name) if name else absolute)
    kept: list[bytes] = []
    for path in sorted(found):
        if not any(path == above or above == b"/" or path.startswith(above + b"/") for above in kept):
            kept.append(path)
    return kept


def identities(paths: Iterable[bytes]) -> set[tuple[int, int]]:
    """(device, inode) of those that exist."""
    found = set()
    for path in paths:
        try:
            st = os.stat(path)
        except OSError:
            continue
        found.add((st.st_dev, st.st_ino))
    return found
