"""The repository secret, the keys derived from it, and the key slots that passphrases open.

Derivation is BLAKE3's key derivation mode with one context string per purpose (the BLAKE3 paper, section 6.2): no two
purposes share a key. An object's own key is BLAKE3 keyed with its kind's key over the object's random salt.
Passphrases go through Argon2id (RFC 9106).
"""

from __future__ import annotations

import secrets
from typing import Any, Final, NamedTuple

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cas.errors import BackdriveError, InvalidRequest, ObjectDamaged
from cas.store.formats import ObjectKind, PackKind, decode_header, encode_header

SECRET_BYTES: Final = 32
PASSPHRASE_MIN_CHARACTERS: Final = 16
_CONTEXT: Final = "backdrive 2026-11 format 1 "
_SLOT_FORMAT: Final = "backdrive key slot"

# RFC 9106 section 4 recommends 64 MiB, 3 passes and 4 lanes where 2 GiB is too much.
ARGON2_MEMORY_KIB: Final = 65536
ARGON2_PASSES: Final = 3
ARGON2_LANES: Final = 4
# What a slot from an untrusted vault may ask of this machine.
_MOST_MEMORY_KIB: Final = 1 << 20
_MOST_PASSES: Final = 16
_MOST_LANES: Final = 64


class RepositoryKeys:
    """Every key of one repository, derived from its 32-byte secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError("a repository secret has 32 bytes")
        self.secret: Final = secret
        self.chunk_id: Final = self._derive("chunk id")
        # Metadata has ids of its own, so that no file's content can pose as a tree.
        self.meta_id: Final = self._derive("metadata id")
        # 63 bits, as pyfastcdc doubles it in 64; never zero, which it takes for "no seed".
        self.chunker_seed: Final = int.from_bytes(self._derive("chunker seed")[:8], "little") >> 1 | 1
        self._kinds: Final[dict[ObjectKind | PackKind, bytes]] = {
            **{kind: self._derive(f"object {kind.name}") for kind in ObjectKind},
        }
        self._packs: Final = {kind: self._derive(f"pack {kind.name}") for kind in PackKind}

    def _derive(self, purpose: str) -> bytes:
        return blake3(self.secret, derive_key_context=_CONTEXT + purpose).digest()

    def derive(self, purpose: str) -> bytes:
        """A 32-byte key for a purpose outside the store, such as names of machine objects."""
        return self._derive(purpose)

    def object_key(self, kind: ObjectKind, salt: bytes) -> bytes:
        """The AES-256 key of one sealed object."""
        return blake3(salt, key=self._kinds[kind]).digest()

    def pack_key(self, kind: PackKind, salt: bytes) -> bytes:
        """The AES-256 key of one pack."""
        return blake3(salt, key=self._packs[kind]).digest()


def new_secret() -> bytes:
    """A fresh repository secret."""
    return secrets.token_bytes(SECRET_BYTES)


def check_passphrase(passphrase: str) -> None:
    """Raise InvalidRequest unless the passphrase is long enough."""
    if len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
        raise InvalidRequest(
            f"The passphrase has {len(passphrase)} characters; it needs {PASSPHRASE_MIN_CHARACTERS} or more.",
            "Choose a longer one, or let backdrive generate one.",
        )


def _stretch(passphrase: str, salt: bytes, passes: int, memory_kib: int, lanes: int) -> bytes:
    from argon2.exceptions import HashingError
    from argon2.low_level import Type, hash_secret_raw  # costs a C library load; only needed here

    try:
        return hash_secret_raw(passphrase.encode(), salt, passes, memory_kib, lanes, 32, Type.ID)
    except HashingError as error:
        raise BackdriveError(
            f"The passphrase cannot be stretched: {error}. That needs {memory_kib >> 10} MiB of memory.",
            "Free some memory and try again.",
        ) from None


def make_slot(secret: bytes, passphrase: str, slot: str, about: bytes) -> bytes:
    """The bytes of a key slot: the secret sealed under the passphrase. `about` is a sealed label."""
    check_passphrase(passphrase)
    salt = secrets.token_bytes(32)
    kek = _stretch(passphrase, salt, ARGON2_PASSES, ARGON2_MEMORY_KIB, ARGON2_LANES)
    # The salt is random, so the key is used for this one message: a fixed nonce is safe.
    sealed = AESGCM(kek).encrypt(bytes(12), secret, f"{_SLOT_FORMAT} {slot}".encode())
    return encode_header(
        _SLOT_FORMAT,
        slot,
        kdf="argon2id",
        passes=ARGON2_PASSES,
        memory_kib=ARGON2_MEMORY_KIB,
        lanes=ARGON2_LANES,
        salt=salt.hex(),
        sealed=sealed.hex(),
        about=about.hex(),
    )


def _slot_numbers(header: dict[str, Any], name: str) -> tuple[int, int, int]:
    numbers = (header.get("passes"), header.get("memory_kib"), header.get("lanes"))
    limits = (_MOST_PASSES, _MOST_MEMORY_KIB, _MOST_LANES)
    for number, limit in zip(numbers, limits, strict=True):
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= limit:
            raise ObjectDamaged(name, "its key stretching parameters are out of range")
    passes, memory_kib, lanes = numbers
    assert isinstance(passes, int) and isinstance(memory_kib, int) and isinstance(lanes, int)
    if memory_kib < 8 * lanes:
        raise ObjectDamaged(name, "its key stretching parameters are out of range")
    return passes, memory_kib, lanes


def _hex_field(header: dict[str, Any], field: str, name: str) -> bytes:
    try:
        return bytes.fromhex(header[field])
    except (KeyError, TypeError, ValueError):
        raise ObjectDamaged(name, f"its field {field} does not parse") from None


class _Slot(NamedTuple):
    """What a key slot says, in range and of the right lengths."""

    passes: int
    memory_kib: int
    lanes: int
    salt: bytes
    sealed: bytes
    about: bytes


def _parse_slot(data: bytes, name: str) -> _Slot:
    header = decode_header(data, _SLOT_FORMAT, name)
    if header.get("kdf") != "argon2id":
        raise ObjectDamaged(name, "its key derivation function is unknown")
    salt, sealed = _hex_field(header, "salt", name), _hex_field(header, "sealed", name)
    if len(salt) < 8 or len(sealed) != SECRET_BYTES + 16:
        raise ObjectDamaged(name, "its fields have the wrong length")
    return _Slot(*_slot_numbers(header, name), salt, sealed, _hex_field(header, "about", name))


def open_slot(data: bytes, passphrase: str, slot: str, name: str) -> bytes | None:
    """The repository secret, or None where this passphrase does not open the slot.

    Raises ObjectDamaged where the slot does not parse, FormatTooNew.
    """
    fields = _parse_slot(data, name)
    kek = _stretch(passphrase, fields.salt, fields.passes, fields.memory_kib, fields.lanes)
    try:
        return AESGCM(kek).decrypt(bytes(12), fields.sealed, f"{_SLOT_FORMAT} {slot}".encode())
    except InvalidTag:
        return None


def slot_about(data: bytes, name: str) -> bytes:
    """The sealed label of a slot, the whole of which is parsed. Raises ObjectDamaged, FormatTooNew."""
    return _parse_slot(data, name).about
