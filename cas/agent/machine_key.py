"""The machine's key file: the repository secret, sealed so that a stray copy of the file does not open elsewhere.

The sealing key is BLAKE3's key derivation over the host's id and a random salt that the file holds. Whoever can read
the file and the host's id can open it: the file is 0600, and the machine is trusted while it runs. What it prevents is
that a copy of the home alone, in a backup or on another machine, opens the repository.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cas.agent import host
from cas.agent.files import write_atomic
from cas.agent.home import Home
from cas.errors import MachineKeyUnusable
from cas.ids import RepositoryId

_FORMAT: Final = "backdrive machine key"
_VERSION: Final = 1
_CONTEXT: Final = "backdrive 2026-11 machine key file 1"
_SALT_BYTES: Final = 32


def key_path(home: Home, name: str) -> Path:
    """The key file of the registration `name`."""
    return home.keys / f"{name}.key"


def _cipher(host_id: str, salt: bytes) -> AESGCM:
    return AESGCM(blake3(salt + host_id.encode(), derive_key_context=_CONTEXT).digest())


def write_key(home: Home, name: str, repository: RepositoryId, secret: bytes) -> None:
    """Seal the secret for this host. Raises NoSpace, CacheUnusable."""
    host_id, source = host.host_id(home)
    salt = secrets.token_bytes(_SALT_BYTES)
    # The salt is random, so the key seals this one message: a fixed nonce is safe.
    sealed = _cipher(host_id, salt).encrypt(bytes(12), secret, f"{_FORMAT} {repository}".encode())
    document = {"format": _FORMAT, "version": _VERSION, "host": source, "salt": salt.hex(), "sealed": sealed.hex()}
    write_atomic(key_path(home, name), json.dumps(document, indent=1).encode() + b"\n", 0o600)


def read_key(home: Home, name: str, repository: RepositoryId) -> bytes:
    """The repository secret. Raises MachineKeyUnusable."""
    path = key_path(home, name)
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise MachineKeyUnusable(f"The key file {path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise MachineKeyUnusable(f"The key file {path} is damaged.") from None
    salt, sealed, source = _fields(document, path)
    host_id = host.system_id() if source == host.SYSTEM else host.home_id(home)
    if host_id is None:
        raise MachineKeyUnusable(f"The key file {path} belongs to a machine with an id, and this one has none.")
    try:
        return _cipher(host_id, salt).decrypt(bytes(12), sealed, f"{_FORMAT} {repository}".encode())
    except InvalidTag:
        raise MachineKeyUnusable(f"The key file {path} was sealed on another machine, or is damaged.") from None


def _fields(document: Any, path: Path) -> tuple[bytes, bytes, str]:
    damaged = MachineKeyUnusable(f"The key file {path} is damaged.")
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise damaged
    if document.get("version") != _VERSION:
        raise MachineKeyUnusable(f"The key file {path} was written by a newer backdrive.")
    try:
        salt, sealed = bytes.fromhex(document["salt"]), bytes.fromhex(document["sealed"])
        source = str(document["host"])
    except (KeyError, TypeError, ValueError):
        raise damaged from None
    if len(salt) != _SALT_BYTES or len(sealed) < 16 or source not in (host.SYSTEM, host.HOME):
        raise damaged
    return salt, sealed, source
