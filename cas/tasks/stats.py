"""What a repository holds, and what deduplication and compression save."""

from __future__ import annotations

from dataclasses import dataclass, field

from cas.errors import BackdriveError
from cas.repository import Problems, Repository


@dataclass(slots=True)
class MachineStats:
    """The points of one machine. Sizes are bytes."""

    points: int = 0
    first: int = 0  # ns
    last: int = 0  # ns
    size: int = 0  # of all files in its last point
    size_of_all: int = 0  # of all files in all its points: what full copies would take
    added: int = 0  # what all its points added to the vault


@dataclass(slots=True)
class RepositoryStats:
    """Counts of one repository. Sizes are bytes; `objects` is by the folder in the vault: (number, bytes)."""

    points: int = 0
    chunks: int = 0
    packs: int = 0
    size: int = 0  # of everything in the vault
    size_of_all: int = 0
    objects: dict[str, tuple[int, int]] = field(default_factory=dict)
    machines: dict[str, MachineStats] = field(default_factory=dict)
    problems: list[BackdriveError] = field(default_factory=list)

    @property
    def saving(self) -> float:
        """How many times smaller the vault is than full copies of every point would be."""
        return self.size_of_all / self.size if self.size else 0.0


def stats(repository: Repository) -> RepositoryStats:
    """Count. What cannot be read is left out and named in `problems`. Raises the vault's and the cache's errors."""
    problems = Problems()
    problems.errors.extend(repository.refresh().errors)
    found = RepositoryStats(problems=problems.errors)
    for point in repository.points(problems):
        machine = found.machines.setdefault(point.machine, MachineStats(first=point.started))
        machine.points += 1
        machine.last = point.started
        machine.size = point.stats.size
        machine.size_of_all += point.stats.size
        machine.added += point.stats.added
        found.points += 1
        found.size_of_all += point.stats.size
    for entry in repository.vault.list(repository.layout.root):
        folder, slash, _ = entry.name.removeprefix(repository.layout.root).partition("/")
        count, size = found.objects.get(folder if slash else "header", (0, 0))
        found.objects[folder if slash else "header"] = (count + 1, size + entry.size)
        found.size += entry.size
    found.chunks = repository.index.chunk_count()
    found.packs = len(repository.index.packs())
    return found
