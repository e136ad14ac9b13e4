"""Key slots: which passphrases open a repository."""

from __future__ import annotations

from dataclasses import dataclass

from cas.errors import Damaged, FormatTooNew, InvalidRequest, ObjectDamaged, ObjectMissing
from cas.ids import RepositoryId
from cas.store import keys
from cas.store.formats import ObjectKind
from cas.store.keys import RepositoryKeys
from cas.store.layout import REPOSITORIES, Layout, new_id
from cas.store.sealer import open_object, seal_object
from cas.vault.base import Vault


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One slot: its id and label, or what is wrong with it."""

    id: str
    about: str
    error: str = ""


class KeySlots:
    """The slots of one repository, for who has its keys already."""

    def __init__(self, vault: Vault, layout: Layout, repository_keys: RepositoryKeys) -> None:
        self._vault = vault
        self._layout = layout
        self._keys = repository_keys

    def all(self) -> list[KeySlot]:
        """All slots with their labels. Raises the vault's errors."""
        slots = []
        for entry in sorted(self._vault.list(self._layout.keys)):
            slot = entry.name.removeprefix(self._layout.keys)
            try:
                sealed = keys.slot_about(self._vault.get(entry.name), entry.name)
                about = open_object(self._keys, ObjectKind.KEY_ABOUT, entry.name, sealed)
                slots.append(KeySlot(slot, about.decode(errors="replace")))
            except (Damaged, FormatTooNew) as error:
                slots.append(KeySlot(slot, "", str(error)))
        return slots

    def add(self, passphrase: str, about: str) -> str:
        """Make one more slot; returns its id. Raises InvalidRequest for a short passphrase, and the vault's errors."""
        slot = new_id()
        name = self._layout.keys + slot
        sealed_about = b"".join(seal_object(self._keys, ObjectKind.KEY_ABOUT, name, about.encode()))
        self._vault.put(name, [keys.make_slot(self._keys.secret, passphrase, name, sealed_about)])
        return slot

    def remove(self, slot: str) -> None:
        """Remove a slot, never the last one that is whole. Raises InvalidRequest, and the vault's errors."""
        slots = self.all()
        if slot not in [known.id for known in slots]:
            raise InvalidRequest(f"There is no key slot {slot}.", "Run 'backdrive key list'.")
        if not [known for known in slots if known.id != slot and not known.error]:
            raise InvalidRequest(
                f"{slot} is the last key slot: without it no passphrase would open the repository.",
                "Add another one first with 'backdrive key add'.",
            )
        self._vault.delete(self._layout.keys + slot)


def list_repositories(vault: Vault) -> list[RepositoryId]:
    """The ids of the repositories in a vault."""
    found = {entry.name.split("/")[1] for entry in vault.list(REPOSITORIES) if entry.name.count("/") >= 2}
    return [RepositoryId(name) for name in sorted(found)]


def unlock(vault: Vault, passphrase: str) -> tuple[RepositoryId, bytes] | None:
    """The first repository of the vault that the passphrase opens, and its secret; None where it opens none.

    A damaged slot does not hide the others. Where nothing opens, raises FormatTooNew if a slot is from the future, and
    ObjectDamaged if one is damaged: the passphrase may be right.
    """
    newer: FormatTooNew | None = None
    damaged: ObjectDamaged | None = None
    for repository in list_repositories(vault):
        layout = Layout(repository)
        for entry in sorted(vault.list(layout.keys)):
            try:
                secret = keys.open_slot(vault.get(entry.name), passphrase, entry.name, entry.name)
            except FormatTooNew as error:
                newer = error
                continue
            except ObjectDamaged as error:
                damaged = error
                continue
            except ObjectMissing:
                continue
            if secret is not None:
                return repository, secret
    if newer is not None:
        raise newer
    if damaged is not None:
        raise ObjectDamaged(damaged.name, f"{damaged.reason}; no other key slot opens with this passphrase")
    return None
