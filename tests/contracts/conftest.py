"""The implementations that the contract suite runs over. Another one is one more factory in FACTORIES."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cas.vault.base import Vault
from cas.vault.caching import CachingVault
from cas.vault.locate import create_vault, open_vault
from cas.vault.memory import MemoryVault
from tests.faults import CountingVault, FaultyVault, KillingVault

HEADER = b'{"contract": true}'

Client = Callable[[], Vault]
"""Opens one more client of one vault."""

Factory = Callable[[Path, pytest.MonkeyPatch], Client]
"""Makes a new vault that holds only `vault.json`; the directory, where it needs one, is its own."""


def memory(directory: Path, patch: pytest.MonkeyPatch) -> Client:
    vault = MemoryVault()
    vault.put("vault.json", [HEADER])
    return lambda: vault


def local(directory: Path, patch: pytest.MonkeyPatch) -> Client:
    url = str(directory / "vault")
    create_vault(url, HEADER).close()
    return lambda: open_vault(url)


def local_without_links(directory: Path, patch: pytest.MonkeyPatch) -> Client:
    """As on FAT."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    patch.setattr(os, "link", refuse)
    return local(directory, patch)


def wrapped(directory: Path, patch: pytest.MonkeyPatch) -> Client:
    """What tests wrap a vault in must change nothing but what it is told to."""
    vault = KillingVault(FaultyVault(CountingVault(memory(directory, patch)()), []), 1 << 62, "before")
    return lambda: vault


def caching(directory: Path, patch: pytest.MonkeyPatch) -> Client:
    """Over a directory; the clients share the cache."""
    inner = local(directory, patch)
    return lambda: CachingVault(inner(), directory / "cache", 1 << 20)


FACTORIES: dict[str, Factory] = {
    "memory": memory,
    "local": local,
    "local-without-links": local_without_links,
    "wrapped": wrapped,
    "caching": caching,
}


@pytest.fixture(params=FACTORIES)
def make_vault(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Client]:
    """Makes new vaults of one implementation."""
    numbers = itertools.count()

    def make() -> Client:
        directory = tmp_path / str(next(numbers))
        directory.mkdir()
        return FACTORIES[request.param](directory, monkeypatch)

    return make


@pytest.fixture
def client(make_vault: Callable[[], Client]) -> Client:
    """Opens clients of one new vault."""
    return make_vault()


@pytest.fixture
def vault(client: Client) -> Iterator[Vault]:
    """One client of a new vault."""
    opened = client()
    yield opened
    opened.close()
