"""What a check finds: problems that name points and files, notes, counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from cas.errors import BackdriveError
from cas.ids import ChunkId, PointId

Kind = Literal["header", "key", "machine", "index", "pack", "point", "tree", "chunk"]
LOST_PACK: Final = "The next backup reads again what was in it and is still in the source."
DAMAGED_PACK: Final = "To replace it, move it out of the vault: the next backup reads again what the source still has."
MOST_FILES: Final = 1000  # paths that a problem lists; beyond them it only counts


@dataclass(slots=True, eq=False)
class Problem:
    """One damaged or missing object, and what it takes with it."""

    kind: Kind
    name: str  # of the object in the vault; for chunks and trees the start of the id
    reason: str
    advice: str = ""
    points: list[PointId] = field(default_factory=list)
    files: list[bytes] = field(default_factory=list)  # the first of them; a directory that is lost ends in a slash
    file_count: int = 0  # distinct paths in all points
    _seen: set[int] = field(default_factory=set, repr=False)

    def touch(self, point: PointId, path: bytes) -> None:
        """The file at `path` of `point` cannot be read because of this."""
        if not self.points or self.points[-1] != point:
            self.points.append(point)
        key = hash(path)
        if key not in self._seen:
            self._seen.add(key)
            self.file_count += 1
            if len(self.files) < MOST_FILES:
                self.files.append(path)

    def __str__(self) -> str:
        parts = [f"{self.kind} {self.name}: {self.reason}."]
        if self.points:
            files, points = ("files", "points") if self.file_count != 1 else ("file", "points")
            points = points if len(self.points) != 1 else "point"
            parts.append(f"It touches {self.file_count} {files} in {len(self.points)} {points}.")
        if self.advice:
            parts.append(self.advice)
        return " ".join(parts)


@dataclass(slots=True)
class CheckReport:
    """What a check looked at, and what it found. Sizes are bytes."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, and no damage
    points: int = 0
    deleted: int = 0  # points that can be taken back
    trees: int = 0  # distinct ones
    files: int = 0  # entries in distinct trees
    chunks: int = 0  # in the index
    packs: int = 0
    packs_read: int = 0  # opened whole
    read: int = 0  # bytes of packs that were opened whole

    @property
    def ok(self) -> bool:
        """Nothing is damaged or missing."""
        return not self.problems

    def add(self, kind: Kind, name: str, reason: str, advice: str = "") -> Problem:
        """One more problem."""
        problem = Problem(kind, name, reason.rstrip("."), advice)
        self.problems.append(problem)
        return problem


def reason_of(error: BackdriveError) -> str:
    """What is wrong, without the name of the object where the error can tell them apart."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, str) else str(error.args[0]).rstrip(".")


@dataclass(slots=True)
class Faults:
    """Which chunks cannot be had, and the problem that each is blamed on. Pack and block numbers are the index's."""

    packs: dict[int, Problem] = field(default_factory=dict)
    blocks: dict[tuple[int, int], Problem] = field(default_factory=dict)
    chunks: dict[ChunkId, Problem] = field(default_factory=dict)
    trees: dict[ChunkId, Problem] = field(default_factory=dict)  # they open, and make no sense

    def __bool__(self) -> bool:
        return bool(self.packs or self.blocks or self.chunks or self.trees)
