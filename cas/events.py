"""What a running task tells: plain values that the command line renders and the job record keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """A task entered a stage: "preparing", "scanning", "transferring", "verifying", "done"."""

    name: str


@dataclass(slots=True)
class Progress:
    """Running totals; the task keeps one and sends it now and then. Sizes are bytes."""

    files: int = 0
    size: int = 0
    read: int = 0
    added: int = 0
    total_files: int | None = None
    total_size: int | None = None
    current: bytes = b""


@dataclass(frozen=True, slots=True)
class Warning:
    """Something that did not stop the task but that a person should know. `path` is empty where none is concerned."""

    path: bytes
    reason: str


Event = Stage | Progress | Warning
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of those who do not want to know."""
