"""The machines of a repository: who holds which name.

A machine is a sealed object named by a keyed hash of the machine's name, so that the vault refuses a second machine of
the same name, and an operator of the vault learns no names. Objects are never changed: a computer that takes a name
over, with the history behind it, adds the next one of a series (`<hash>`, `<hash>-1`, ...), and the last one counts.
"""

from __future__ import annotations

import re
from typing import Final

from blake3 import blake3
from msgspec import Struct

from cas.errors import InvalidRequest, ObjectExists
from cas.ids import MachineId
from cas.repository import Repository
from cas.store import formats
from cas.store.formats import ObjectKind
from cas.store.layout import new_id

# They become names of directories in a drive, also on Windows.
_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,63}(?<!\.)")
_GENERATION: Final = re.compile(r"[0-9a-f]{64}(?:-([1-9][0-9]{0,6}))?")


class MachineRecord(Struct, frozen=True):
    """Who holds a machine's name. `host` is a keyed hash of the host's id; `registered` is in ns."""

    id: MachineId
    name: str
    host: str
    registered: int


def check_machine_name(name: str) -> None:
    """Raise InvalidRequest unless a machine may have this name."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name!r} cannot be the name of a machine.",
            "Use 1 to 63 letters, digits, dots, hyphens and underscores, with no dot at either end (--machine NAME).",
        )


def usable_name(text: str, otherwise: str) -> str:
    """The nearest allowed name to `text`, or `otherwise` where nothing of it is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:63].rstrip(".-") or otherwise


def host_hash(repository: Repository, host: str) -> str:
    """What a record tells of its host: equal for equal hosts, and nothing else."""
    return blake3(host.encode(), key=repository.keys.derive("machine host")).hexdigest()


def _base(repository: Repository, name: str) -> str:
    # Names that differ in case only would be one directory on Windows.
    return blake3(name.lower().encode(), key=repository.keys.derive("machine name")).hexdigest()


def holders(repository: Repository, name: str) -> list[tuple[int, str]]:
    """All that have held a machine's name: position in the series and object name, the present holder last."""
    base = _base(repository, name)
    found = []
    for entry in repository.vault.list(repository.layout.machines):
        last = entry.name.removeprefix(repository.layout.machines)
        match = _GENERATION.fullmatch(last)
        if match and last.startswith(base):
            found.append((int(match[1] or 0), entry.name))
    return sorted(found)


def read_machine(repository: Repository, name: str) -> MachineRecord:
    """A record by its object name. Raises ObjectDamaged, ObjectMissing, FormatTooNew."""
    return formats.decode(repository.get_object(ObjectKind.MACHINE, name), MachineRecord, name)


def claim(repository: Repository, name: str, host: str, now: int, *, take_over: bool) -> MachineRecord:
    """Be the machine `name`: a new one, the one that this host was before, or, with `take_over`, another host's.

    `now` is in ns. Raises InvalidRequest where the name is taken, and the vault's errors.
    """
    check_machine_name(name)
    hashed = host_hash(repository, host)
    held = holders(repository, name)
    previous = read_machine(repository, held[-1][1]) if held else None
    if previous is not None:
        if previous.host == hashed:
            return previous
        if not take_over:
            raise _taken(name)
    record = MachineRecord(
        id=previous.id if previous else MachineId(new_id()),
        name=previous.name if previous else name,
        host=hashed,
        registered=now,
    )
    suffix = f"-{held[-1][0] + 1}" if held else ""
    target = f"{repository.layout.machines}{_base(repository, name)}{suffix}"
    try:
        repository.put_object(ObjectKind.MACHINE, target, formats.encode(record))
    except ObjectExists:  # another computer was quicker
        raise _taken(name) from None
    return record


def _taken(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"Another computer is registered as the machine '{name}' in this repository.",
        "Choose another name with --machine NAME, or, if this computer replaces that one, continue its history with "
        "--take-over.",
    )
