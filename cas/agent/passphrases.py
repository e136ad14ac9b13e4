"""The passphrases that open a repository: making one up, and changing one."""

from __future__ import annotations

import secrets
from typing import Final

from cas.errors import Damaged, FormatTooNew, InvalidRequest, ObjectMissing, WrongPassphrase
from cas.repository import Repository
from cas.store import keys

# No letters or digits that are taken for one another (0/o, 1/l/i) and few that make words: 31 of them, 4.95 bits each.
_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS: Final = 6
_GROUP: Final = 4


def generate() -> str:
    """A passphrase of 118 random bits in groups of four characters."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(_GROUP)) for _ in range(_GROUPS))


def slot_of(repository: Repository, passphrase: str) -> str | None:
    """The id of the key slot that the passphrase opens, or None. Raises the vault's errors."""
    for entry in sorted(repository.vault.list(repository.layout.keys)):
        try:
            secret = keys.open_slot(repository.vault.get(entry.name), passphrase, entry.name, entry.name)
        except (Damaged, FormatTooNew, ObjectMissing):
            continue
        if secret == repository.keys.secret:
            return entry.name.removeprefix(repository.layout.keys)
    return None


def add(repository: Repository, passphrase: str, about: str) -> str:
    """Make a key slot for one more passphrase; returns its id. It has been opened once before this returns.

    Raises InvalidRequest where the passphrase is too short, and the vault's errors.
    """
    slot = repository.slots.add(passphrase, about)
    name = repository.layout.keys + slot
    if keys.open_slot(repository.vault.get(name), passphrase, name, name) != repository.keys.secret:
        raise WrongPassphrase(f"The new key slot {slot} does not open again.", "The vault may be failing: check it.")
    return slot


def remove(repository: Repository, start: str) -> str:
    """Remove the slot whose id starts so; returns its id. Raises InvalidRequest, and the vault's errors."""
    found = [slot.id for slot in repository.slots.all() if start and slot.id.startswith(start.lower())]
    if len(found) > 1:
        raise InvalidRequest(f"{len(found)} key slots start with {start}.", "Give more of the id.")
    slot = found[0] if found else start
    repository.slots.remove(slot)
    return slot


def verify(repository: Repository, passphrase: str) -> str:
    """The id of the slot that the passphrase opens. Raises WrongPassphrase, and the vault's errors."""
    slot = slot_of(repository, passphrase)
    if slot is None:
        raise WrongPassphrase("The passphrase opens no key slot of this repository.")
    return slot


def change(repository: Repository, slot: str, new: str, about: str) -> str:
    """Put the passphrase `new` in the place of the one that opens `slot`; returns the id of its slot.

    Raises InvalidRequest where `new` is too short, and the vault's errors.
    """
    added = add(repository, new, about)
    repository.slots.remove(slot)
    return added
