"""Which vaults this machine is registered with, and how it becomes so.

A registration is `registrations/<name>.json` in the home, with its sealed key in `keys/<name>.key`. The name is the
machine's own word for the vault: the last part of its path unless another is given.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from cas.agent import host, machines
from cas.agent.files import make_directory, write_atomic
from cas.agent.home import Home
from cas.agent.machine_key import read_key, write_key
from cas.errors import (
    InvalidRequest,
    MachineKeyUnusable,
    NotRegistered,
    ObjectDamaged,
    ObjectMissing,
    VaultReadOnly,
    WrongPassphrase,
)
from cas.ids import MachineId, RepositoryId
from cas.repository import Repository, check_vault
from cas.store.layout import new_id
from cas.store.parameters import Parameters
from cas.store.slots import list_repositories, unlock
from cas.vault.base import Vault
from cas.vault.locate import canonical_url, open_vault

_VERSION: Final = 1
_VAULT_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,63}")


class Registration(Struct, frozen=True):
    """One vault that this machine is registered with."""

    name: str
    vault: str  # its URL
    repository: RepositoryId
    machine_id: MachineId
    machine: str
    recorded: bool = True  # False while the vault could not be written: the machine's name is not reserved in it yet
    version: int = _VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """What `register` is asked for. `now` is in ns."""

    vault: str
    machine: str | None  # None: as it was registered before, or its host name
    passphrase: str
    generated: bool = False  # the passphrase is new, so it cannot have been meant to open anything
    new_repository: bool = False
    take_over: bool = False
    name: str | None = None
    now: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """How `register` ended: whether the repository was made, and the registration."""

    registration: Registration
    created: bool


# --- what is there --------------------------------------------------------------------------------------------------


def _read(home: Home, name: str) -> Registration:
    path = home.registrations / f"{name}.json"
    damaged = MachineKeyUnusable(f"The registration {path} is damaged.")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Registration)
    except OSError as error:
        raise MachineKeyUnusable(f"The registration {path} cannot be read: {error.strerror}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise damaged from None
    if found.version != _VERSION:
        raise MachineKeyUnusable(f"The registration {path} was written by a newer backdrive.", "Use a newer backdrive.")
    if found.name != name:
        raise damaged
    return found


def names(home: Home) -> list[str]:
    """The names of all registrations, damaged ones among them."""
    try:
        return sorted(path.stem for path in home.registrations.iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise MachineKeyUnusable(f"{home.registrations} cannot be read: {error.strerror}.") from None


def select(home: Home, name: str | None) -> Registration:
    """The registration of that name, or the only one. Raises NotRegistered, InvalidRequest, MachineKeyUnusable."""
    known = names(home)
    if name is not None:
        if name not in known:
            have = f"; there are {', '.join(known)}" if known else ""
            raise NotRegistered(f"This machine has no registration named '{name}'{have}.")
        return _read(home, name)
    if not known:
        raise NotRegistered("This machine is not registered with a vault.")
    if len(known) > 1:
        raise InvalidRequest(
            f"This machine is registered with {len(known)} vaults: {', '.join(known)}.",
            "Say which with --vault NAME or BACKDRIVE_VAULT.",
        )
    return _read(home, known[0])


def secret_of(home: Home, registration: Registration) -> bytes:
    """The repository's secret. Raises MachineKeyUnusable."""
    return read_key(home, registration.name, registration.repository)


# --- registering ----------------------------------------------------------------------------------------------------


def register_machine(home: Home, request: RegisterRequest, confirm: Callable[[str], bool]) -> Registered:
    """Register this machine with a repository of the vault: the one that the passphrase opens, else a new one.

    `confirm` is asked before a repository is made in a vault that has others, none of which the passphrase opens: it
    may have been mistyped. Registering again repairs a registration.

    Raises WrongPassphrase where that is answered with no, InvalidRequest (passphrase too short, machine name taken),
    NoSpace, CacheUnusable and the vault's errors.
    """
    if request.machine is not None:
        machines.check_machine_name(request.machine)
    if request.name is not None and not _VAULT_NAME.fullmatch(request.name):
        raise InvalidRequest(
            f"{request.name!r} cannot be the name of a registration.", "Use letters, digits, . _ and -."
        )
    url = canonical_url(request.vault)
    vault = open_vault(url)
    try:
        try:
            check_vault(vault)
        except (ObjectDamaged, ObjectMissing):
            if not list_repositories(vault):
                raise  # nothing is in it that could be joined
        # The home comes first: one that cannot be written should leave the vault as it is.
        host_id, _ = host.host_id(home)
        make_directory(home.cache)
        repository, secret, created = _repository(vault, url, request, confirm)
        with Repository(vault, repository, secret, home.cache) as opened:
            registration = _claim(home, opened, url, request, host_id)
    finally:
        vault.close()
    # The key first: a registration without its key would be a promise that cannot be kept.
    write_key(home, registration.name, repository, secret)
    _write(home, registration)
    return Registered(registration, created)


def host_name() -> str:
    """What this computer calls itself, as a machine may be called."""
    return machines.usable_name(platform.node().partition(".")[0], "machine")


def _repository(
    vault: Vault, url: str, request: RegisterRequest, confirm: Callable[[str], bool]
) -> tuple[RepositoryId, bytes, bool]:
    if not request.new_repository:
        found = None if request.generated else unlock(vault, request.passphrase)
        if found is not None:
            return *found, False
        others = len(list_repositories(vault))
        what = "one repository" if others == 1 else f"{others} repositories"
        message = f"The vault {url} has {what}, and this passphrase opens none."
        if others and not request.generated and not confirm(message):
            raise WrongPassphrase(
                message,
                "Check the passphrase to join one of them, or use --new-repository to make another, which shares "
                "nothing with them.",
            )
    about = f"made when {request.machine or host_name()} was registered"
    repository, secret = Repository.create(vault, request.passphrase, about, Parameters())
    return repository, secret, True


def _claim(home: Home, repository: Repository, url: str, request: RegisterRequest, host_id: str) -> Registration:
    earlier = _earlier(home, url, repository.id)
    name = request.name or (earlier.name if earlier else _free_name(home, url))
    wanted = request.machine or (earlier.machine if earlier else host_name())
    recorded = True
    try:
        record = machines.claim(repository, wanted, host_id, request.now, take_over=request.take_over)
        machine_id, machine = record.id, record.name
    except VaultReadOnly:
        # What is there can be listed, mounted and restored all the same; the name is claimed by the first backup.
        same = earlier is not None and earlier.machine == wanted
        machine_id = earlier.machine_id if earlier is not None and same else MachineId(new_id())
        machine, recorded = wanted, False
    return Registration(
        name=name, vault=url, repository=repository.id, machine_id=machine_id, machine=machine, recorded=recorded
    )


def ensure_recorded(home: Home, registration: Registration, repository: Repository, now: int) -> Registration:
    """Claim the machine's name, where that was not possible when it was registered. Raises the vault's errors."""
    if registration.recorded:
        return registration
    host_id, _ = host.host_id(home)
    record = machines.claim(repository, registration.machine, host_id, now, take_over=False)
    claimed = msgspec.structs.replace(registration, machine_id=record.id, machine=record.name, recorded=True)
    _write(home, claimed)
    return claimed


def _write(home: Home, registration: Registration) -> None:
    document = msgspec.json.format(msgspec.json.encode(registration), indent=1)
    write_atomic(home.registrations / f"{registration.name}.json", document + b"\n")


def _usable(home: Home) -> list[Registration]:
    found = []
    for name in names(home):
        try:
            found.append(_read(home, name))
        except MachineKeyUnusable:
            continue  # as good as none: registering again may write over it
    return found


def _earlier(home: Home, url: str, repository: RepositoryId) -> Registration | None:
    """The registration with the same repository in the same place, which registering again repairs."""
    return next((known for known in _usable(home) if (known.vault, known.repository) == (url, repository)), None)


def _free_name(home: Home, url: str) -> str:
    base = machines.usable_name(url.rstrip("/").rsplit("/", 1)[-1], "vault")
    taken = {known.name for known in _usable(home)}
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base[:58]}-{number}"
    return name
