"""Which packs a collect gives up: those that nothing needs, and those that are worth writing anew. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cas.ids import PackId
from cas.store.formats import PackKind

_SMALL_SHARE: Final = 4  # a pack shorter than a quarter of what packs of its kind have is small
_SMALL_MOST: Final = 16  # small packs of a kind that are left as they are


@dataclass(frozen=True, slots=True)
class PackUse:
    """A pack, and how much of it is needed. Sizes are bytes; `used` is 0 only where nothing of it is needed."""

    number: int
    id: PackId
    kind: PackKind
    size: int
    used: int  # its share of `size`

    @property
    def unused(self) -> int:
        return self.size - self.used


@dataclass(slots=True)
class Plan:
    """What to do. `kept_unused` are bytes that nothing needs and that stay in packs which are kept."""

    dead: list[PackUse] = field(default_factory=list)
    repack: list[PackUse] = field(default_factory=list)
    kept_unused: int = 0
    kept_used: int = 0


def make_plan(packs: Iterable[PackUse], max_unused: float, max_repack: int | None, usual: dict[PackKind, int]) -> Plan:
    """Choose, worst first, until no more than `max_unused` per cent of what is kept is unused.

    `max_repack` bounds the bytes that are written anew. `usual` tells how long packs of a kind usually are: those that
    are much shorter are joined where there are many.
    """
    plan = Plan()
    alive = []
    for pack in packs:
        if pack.used:
            alive.append(pack)
        else:
            plan.dead.append(pack)
    used = sum(pack.used for pack in alive)
    unused = sum(pack.unused for pack in alive)
    budget = max_repack
    chosen: set[int] = set()
    for pack in sorted(alive, key=lambda pack: (-pack.unused / pack.size, pack.id)):
        if unused <= max_unused / 100 * (used + unused) or not pack.unused:
            break
        if budget is not None:
            if pack.used > budget:
                continue
            budget -= pack.used
        chosen.add(pack.number)
        unused -= pack.unused
    for kind, length in usual.items():
        small = [pack for pack in alive if pack.kind == kind and pack.size < length // _SMALL_SHARE]
        if len(small) <= _SMALL_MOST:
            continue
        for pack in sorted(small, key=lambda pack: (pack.size, pack.id)):
            if pack.number in chosen or (budget is not None and pack.used > budget):
                continue
            if budget is not None:
                budget -= pack.used
            chosen.add(pack.number)
            unused -= pack.unused
    plan.repack = [pack for pack in alive if pack.number in chosen]
    plan.kept_used = used
    plan.kept_unused = unused
    return plan
