"""Key slots and headers: what opens them, and what a hostile one may not do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cas.errors import FormatTooNew, InvalidRequest, ObjectDamaged
from cas.repository import Repository, vault_header
from cas.store import formats, keys
from cas.store.formats import ObjectKind, PackKind
from cas.store.keys import RepositoryKeys, make_slot, new_secret, open_slot, slot_about
from cas.store.slots import list_repositories, unlock
from cas.vault.memory import MemoryVault
from tests.engine import PASSPHRASE, SMALL, World, cheap_keys

NAME = "repositories/r/keys/k"
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def slot() -> bytes:
    """With the real cost of key stretching."""
    return make_slot(SECRET, PASSPHRASE, NAME, b"label")


def edited(slot: bytes, **changes: Any) -> bytes:
    """The slot with other fields and a digest that fits."""
    header = json.loads(slot)
    for field in ("format", "version", "id", "digest"):
        header.pop(field)
    return formats.encode_header("backdrive key slot", NAME, **{**header, **changes})


def test_the_passphrase_opens_it(slot: bytes) -> None:
    assert open_slot(slot, PASSPHRASE, NAME, NAME) == SECRET
    assert slot_about(slot, NAME) == b"label"
    header = json.loads(slot)
    assert (header["memory_kib"], header["passes"], header["lanes"]) == (65536, 3, 4)  # RFC 9106, second choice


def test_nothing_else_opens_it(slot: bytes) -> None:
    assert open_slot(slot, PASSPHRASE + " ", NAME, NAME) is None
    assert open_slot(slot, PASSPHRASE, NAME + "2", NAME) is None  # bound to its name


def test_equal_passphrases_give_other_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_keys(monkeypatch)
    assert make_slot(SECRET, PASSPHRASE, NAME, b"") != make_slot(SECRET, PASSPHRASE, NAME, b"")


@pytest.mark.parametrize("passphrase", ["", "short", "x" * 15])
def test_a_short_passphrase_is_refused(passphrase: str) -> None:
    with pytest.raises(InvalidRequest):
        make_slot(SECRET, passphrase, NAME, b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_kib": 1 << 40},
        {"memory_kib": (1 << 21) + 1},
        {"memory_kib": 0},
        {"memory_kib": 31, "lanes": 4},
        {"memory_kib": "65536"},
        {"memory_kib": True},
        {"memory_kib": None},
        {"passes": 1 << 20},
        {"passes": -3},
        {"passes": 2.5},
        {"lanes": 1 << 24},
        {"lanes": 0},
        {"salt": "zz"},
        {"salt": "00"},
        {"salt": 5},
        {"sealed": ""},
        {"sealed": "00" * 47},
        {"about": "0"},
        {"about": None},
        {"kdf": "scrypt"},
    ],
)
def test_hostile_fields_are_refused(slot: bytes, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_stretch", lambda *_: pytest.fail("it was stretched"))
    with pytest.raises(ObjectDamaged):
        open_slot(edited(slot, **changes), PASSPHRASE, NAME, NAME)


def test_headers_of_the_future_and_of_nobody() -> None:
    header = json.loads(vault_header())
    with pytest.raises(FormatTooNew):
        formats.decode_header(json.dumps({**header, "version": 2}).encode(), "backdrive vault", "vault.json")
    with pytest.raises(FormatTooNew):
        formats.decode_header(
            formats.encode_header("backdrive vault", "x", features=["telepathy"]), "backdrive vault", "vault.json"
        )
    for data in (
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        vault_header()[:-2],
        json.dumps({**header, "version": "1"}).encode(),
        json.dumps({**header, "version": 0}).encode(),
        json.dumps({**header, "features": "x"}).encode(),
        json.dumps({**header, "id": "x"}).encode(),
        json.dumps({**header, "digest": 7}).encode(),
        json.dumps({**header, "digest": "\N{SNOWMAN}" * 64}).encode(),
        formats.encode_header("backdrive repository", "x"),
    ):
        with pytest.raises(ObjectDamaged):
            formats.decode_header(data, "backdrive vault", "vault.json")


def test_every_bit_of_a_header_counts() -> None:
    header = vault_header()
    for position in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises((ObjectDamaged, FormatTooNew)):
            formats.decode_header(bytes(flipped), "backdrive vault", "vault.json")


def test_no_two_purposes_share_a_key() -> None:
    derived = RepositoryKeys(SECRET)
    salt = bytes(32)
    found = [
        derived.chunk_id,
        derived.meta_id,
        derived.derive("machine name"),
        *(derived.object_key(kind, salt) for kind in ObjectKind),
        *(derived.pack_key(kind, salt) for kind in PackKind),
    ]
    assert len(set(found)) == len(found)
    assert derived.chunker_seed % 2 == 1
    assert derived.chunker_seed.bit_length() <= 63
    assert len(new_secret()) == 32
    with pytest.raises(ValueError, match="32"):
        RepositoryKeys(b"short")


def test_unlocking_goes_past_damaged_and_foreign_slots(world: World) -> None:
    other, secret = Repository.create(world.vault, "another passphrase", "other", SMALL)
    with world.open() as repository:
        repository.vault.put(repository.layout.keys + "0" * 32, [b"garbage"])
        repository.slots.add("a second passphrase", "second")
        assert sorted(slot.about for slot in repository.slots.all() if not slot.error) == ["second", "test"]
        assert [slot.id for slot in repository.slots.all() if slot.error] == ["0" * 32]
    assert sorted(list_repositories(world.vault)) == sorted([world.id, other])
    assert unlock(world.vault, PASSPHRASE) == (world.id, world.secret)
    assert unlock(world.vault, "a second passphrase") == (world.id, world.secret)
    assert unlock(world.vault, "another passphrase") == (other, secret)
    with pytest.raises(ObjectDamaged, match="no other key slot"):  # the damaged one may have been this passphrase's
        unlock(world.vault, "a wrong passphrase")


def test_a_slot_from_the_future_is_told() -> None:
    vault = MemoryVault()
    vault.put("repositories/r/keys/k", [b'{"format": "backdrive key slot", "version": 2}'])
    with pytest.raises(FormatTooNew):
        unlock(vault, PASSPHRASE)


def test_the_last_whole_slot_stays(world: World) -> None:
    with world.open() as repository:
        (only,) = repository.slots.all()
        repository.vault.put(repository.layout.keys + "0" * 32, [b"garbage"])
        with pytest.raises(InvalidRequest, match="last"):
            repository.slots.remove(only.id)
        second = repository.slots.add("a second passphrase", "second")
        repository.slots.remove(only.id)
        with pytest.raises(InvalidRequest, match="no key slot"):
            repository.slots.remove(only.id)
        assert second in [slot.id for slot in repository.slots.all()]
        repository.vault.delete(repository.layout.keys + "0" * 32)
    assert unlock(world.vault, PASSPHRASE) is None
