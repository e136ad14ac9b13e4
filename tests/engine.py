"""The engine without agent and command line: repositories that cost no key stretching, backups, and reading back."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cas.errors import BackdriveError
from cas.ids import ChunkId, MachineId, RepositoryId
from cas.model import Node, NodeKind, Point
from cas.repository import Repository, vault_header
from cas.store import formats, keys
from cas.store.formats import ObjectKind
from cas.store.parameters import NO_LIMIT, Parameters
from cas.store.reader import Reader
from cas.tasks.backup import backup
from cas.tasks.requests import BackupRequest, BackupResult, Machine
from cas.vault.base import Vault

PASSPHRASE = "correct horse, battery and staple"
MACHINE = Machine(MachineId("ab" * 16), "testbox")
SMALL = Parameters(
    single_most=16 << 10,
    tiers=((NO_LIMIT, 4 << 10),),
    dense_average=4 << 10,
    small_block=32 << 10,
    large_block=32 << 10,
    dense_block=16 << 10,
    tree_block=16 << 10,
    pack=128 << 10,
)
"""Sizes with which a few hundred KiB make several packs of several blocks."""


def cheap_keys(patch: pytest.MonkeyPatch) -> None:
    """Key stretching that takes no time, for tests about something else."""
    patch.setattr(keys, "ARGON2_MEMORY_KIB", 8)
    patch.setattr(keys, "ARGON2_PASSES", 1)
    patch.setattr(keys, "ARGON2_LANES", 1)


@dataclass(frozen=True, slots=True)
class World:
    """A repository in a vault, and one machine's cache of it."""

    vault: Vault
    id: RepositoryId
    secret: bytes
    cache: Path

    def open(self, vault: Vault | None = None, cache: Path | None = None) -> Repository:
        """Open it; over another vault or with another cache where given."""
        return Repository(vault or self.vault, self.id, self.secret, cache or self.cache)

    def backup(
        self, *paths: Path, vault: Vault | None = None, now: Callable[[], int] | None = None, **options: Any
    ) -> BackupResult:
        """Back up with the world's cache; `options` go to the request."""
        with self.open(vault) as repository:
            request = BackupRequest(machine=MACHINE, paths=[os.fsencode(path) for path in paths], **options)
            return backup(repository, request) if now is None else backup(repository, request, now=now)


def make_world(vault: Vault, cache: Path, parameters: Parameters = SMALL) -> World:
    """A new repository with one machine, in a vault that may lack its header."""
    if not any(entry.name == "vault.json" for entry in vault.list("")):
        vault.put("vault.json", [vault_header()])
    identity, secret = Repository.create(vault, PASSPHRASE, "test", parameters)
    world = World(vault, identity, secret, cache)
    with world.open() as repository:
        record = {"id": MACHINE.id, "name": MACHINE.name, "host": "", "registered": 0}
        repository.put_object(ObjectKind.MACHINE, repository.layout.machines + "cd" * 32, formats.encode(record))
    return world


def file_bytes(reader: Reader, node: Node) -> bytes:
    """A file's content, holes as zeros. Raises what the reader does."""
    content = reader.content(node)
    data = bytearray(node.size)
    for piece in content.pieces():
        data[piece.offset : piece.offset + piece.length] = reader.chunk(piece.chunk)[
            piece.skip : piece.skip + piece.length
        ]
    return bytes(data)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a point as it reads back; `error` instead of content where it does not."""

    node: Node
    content: bytes | None = None
    error: BackdriveError | None = None


def read_point(reader: Reader, point: Point) -> dict[bytes, Entry]:
    """Everything in a point by absolute path; a directory whose entries cannot be read has an `error`."""
    found: dict[bytes, Entry] = {}
    stack: list[tuple[bytes, ChunkId]] = [(b"", point.root)]
    while stack:
        path, tree = stack.pop()
        try:
            nodes = [node for node, _ in reader.entries(tree)]
        except BackdriveError as error:
            node = found[path].node if path else Node(b"", NodeKind.DIRECTORY, 0, 0, 0, 0, 0, 0, tree)
            found[path or b"/"] = Entry(node, error=error)
            continue
        for node in nodes:
            here = path + b"/" + node.name
            found[here] = Entry(node)
            if node.is_directory:
                stack.append((here, ChunkId(node.content)))
            elif node.is_file:
                try:
                    found[here] = Entry(node, file_bytes(reader, node))
                except BackdriveError as error:
                    found[here] = Entry(node, error=error)
    return found


def files_of(reader: Reader, point: Point) -> dict[bytes, bytes]:
    """Contents of all files by absolute path. Fails the test where one does not read back."""
    found = {}
    for path, entry in read_point(reader, point).items():
        if entry.error is not None:
            raise entry.error
        if entry.content is not None:
            found[path] = entry.content
    return found


def files_on_disk(*roots: Path) -> dict[bytes, bytes]:
    """The same of a directory as it is now."""
    found = {}
    for root in roots:
        for path in walk_disk(os.fsencode(root)):
            if stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    found[path] = file.read()
    return found


def walk_disk(root: bytes) -> Iterator[bytes]:
    """Every path at or below `root`; links are not followed."""
    yield root
    if stat.S_ISDIR(os.lstat(root).st_mode):
        for name in sorted(os.listdir(root)):
            yield from walk_disk(root + b"/" + name)


def write_files(root: Path, contents: dict[str, bytes]) -> None:
    """Make files with their directories."""
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names_in(vault: Vault, prefixes: Sequence[str] = ("",)) -> list[str]:
    """The objects under prefixes, sorted."""
    return sorted(entry.name for prefix in prefixes for entry in vault.list(prefix))
