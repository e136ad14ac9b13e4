"""What the sealed objects say that let points come and go: sessions, deleted points, condemned packs, purged points.

The specification is `cas/FORMAT.md`, sections 4 and 12.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from cas.ids import PACK_ID_BYTES, PackId
from cas.store.formats import PackKind

BACKUP: Final = "backup"
DRIVE: Final = "drive"
COLLECT: Final = "collect"


class Session(Struct, frozen=True, omit_defaults=True):
    """Who is at work, and what of the repository it relies on. Times are ns."""

    machine: str
    started: int
    kind: str = BACKUP
    at: int = 0  # when this object was written; 0: at `started`
    roots: list[bytes] = field(default_factory=list)  # trees that are kept while it lives
    knows: list[str] = field(default_factory=list)  # condemned objects whose packs count as absent for it

    @property
    def written(self) -> int:
        """When this object was written."""
        return self.at or self.started


class Deleted(Struct, frozen=True):
    """A point that was deleted and can be taken back. Times are ns."""

    point: bytes  # the payload of the point's own object
    deleted: int
    purge_after: int


class Condemned(Struct, frozen=True):
    """Packs that will be deleted. `made` is ns."""

    made: int
    packs: dict[int, bytes]  # by pack kind: their ids, joined

    def ids(self) -> list[tuple[PackKind, PackId]]:
        """Each pack with its kind. Raises ValueError where that cannot be."""
        found = []
        for kind, joined in self.packs.items():
            if len(joined) % PACK_ID_BYTES:
                raise ValueError("ids are cut short")
            for start in range(0, len(joined), PACK_ID_BYTES):
                found.append((PackKind(kind), PackId(joined[start : start + PACK_ID_BYTES])))
        return found


class Void(Struct, frozen=True):
    """What takes the name of a point that must not come any more. `voided` is ns."""

    features: list[str]
    voided: int


VOID_FEATURES: Final = ["void"]  # for readers that know nothing of voids: they refuse it


class Purged(Struct, frozen=True):
    """Points that are gone for good, and were meant to be: 16 bytes an id, joined."""

    points: bytes

    def ids(self) -> list[str]:
        """The ids as they stand in names."""
        return [self.points[start : start + 16].hex() for start in range(0, len(self.points), 16)]


def join_packs(packs: list[tuple[PackKind, PackId]]) -> dict[int, bytes]:
    """The packs of a condemned object."""
    return {int(kind): b"".join(sorted(pack for known, pack in packs if known == kind)) for kind in PackKind}
