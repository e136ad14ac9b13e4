"""What the tests of restore share: points from real trees and from made-up nodes, and pictures of trees to compare."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cas.ids import ChunkId, MachineId, PointId
from cas.model import Extra, Node, NodeKind, Owner, Point
from cas.repository import Repository
from cas.store.formats import PACK_HEADER_BYTES
from cas.store.layout import new_id
from cas.store.parameters import Parameters
from cas.store.trees import write_tree
from cas.store.writer import Writer
from cas.tasks.backup import backup
from cas.tasks.requests import BackupRequest, Machine
from cas.tasks.restore_process import WriterProcess
from cas.vault.memory import MemoryVault
from tests.engine import cheap_keys

PASSPHRASE = "correct horse, battery and staple"
MACHINE = Machine(MachineId("0" * 32), "here")
STARTED = 1_795_332_605_000_000_000  # 2026-11-22 07:30:05 UTC


@dataclass(slots=True)
class Made:
    """A node made up: a directory has `entries`, everything else `data` (content, or the target of a link)."""

    kind: NodeKind = NodeKind.FILE
    data: bytes = b""
    entries: dict[bytes, Made] = field(default_factory=dict)
    mode: int = 0o644
    mtime: int = 1_000_000_000_123_456_789
    extra: Extra | None = None
    inode: int = 1
    owner: Owner = field(default_factory=lambda: Owner(os.getuid(), os.getgid()))


def made_directory(entries: dict[bytes, Made], mode: int = 0o755, extra: Extra | None = None) -> Made:
    return Made(NodeKind.DIRECTORY, entries=entries, mode=mode, extra=extra)


def made_link(target: bytes) -> Made:
    return Made(NodeKind.SYMLINK, target, mode=0o777)


def store_nodes(writer: Writer, nodes: Sequence[tuple[bytes, Made]]) -> ChunkId:
    """Write the entries of one directory, in the order given; returns the tree."""
    owners: list[Owner] = []
    stored = []
    for name, made in nodes:
        if made.owner not in owners:
            owners.append(made.owner)
        content, depth, size = b"", 0, len(made.data)
        if made.kind == NodeKind.DIRECTORY:
            content, size = store_nodes(writer, sorted(made.entries.items())), 0
        elif made.kind == NodeKind.SYMLINK:
            content = made.data
        elif made.data:
            content = writer.chunk(made.data)
        owner = owners.index(made.owner)
        stored.append(
            Node(name, made.kind, made.mode, owner, size, made.mtime, 0, made.inode, content, depth, made.extra)
        )
    return write_tree(writer.meta, owners, stored)


def use_processes(monkeypatch: pytest.MonkeyPatch, *, use: bool) -> None:
    """Have every restore write with processes of its own, whatever the vault and however small; or none at all."""
    monkeypatch.setattr(WriterProcess, "suits", lambda _: use)
    monkeypatch.setattr("cas.tasks.restore._MANY", 0)


class Lab:
    """A repository in memory."""

    def __init__(self, cache: Path) -> None:
        self.vault = MemoryVault()
        with pytest.MonkeyPatch.context() as patch:
            cheap_keys(patch)
            repository, secret = Repository.create(self.vault, PASSPHRASE, "test", Parameters())
        self.repository = Repository(self.vault, repository, secret, cache)

    def protect(self, *paths: Path) -> Point:
        """A point of real directories."""
        point = backup(
            self.repository, BackupRequest(machine=MACHINE, paths=[os.fsencode(path) for path in paths])
        ).point
        assert point is not None
        return point

    def made(self, entries: dict[bytes, Made]) -> Point:
        """A point of what no walk would have found; the root lists what is given, in the order of names."""
        return self.store(lambda writer: store_nodes(writer, sorted(entries.items())))

    def store(self, write: Callable[[Writer], ChunkId]) -> Point:
        """A point whose root tree `write` stores."""
        with self.repository.writer() as writer:
            root = write(writer)
            writer.finish()
        point = Point(
            id=PointId(new_id()),
            machine_id=MACHINE.id,
            machine=MACHINE.name,
            started=STARTED,
            finished=STARTED,
            paths=[b"/"],
            root=root,
        )
        self.repository.commit(point)
        return point

    def damage(self, kind: str) -> None:
        """Flip one bit in the first block of every pack of a kind, "data" or "tree"."""
        objects = self.vault._objects
        for name in [name for name in objects if f"/{kind}/" in name]:
            data = bytearray(objects[name])
            data[PACK_HEADER_BYTES + 5] ^= 1
            objects[name] = bytes(data)


def below(target: Path, path: Path) -> Path:
    """Where a whole restore puts a path."""
    return target / path.relative_to("/")


def picture(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Every entry below `root`, and `root` itself, with all that a restore must bring back."""
    return dict(_picture(os.fsencode(root), b""))


def _picture(path: bytes, name: bytes) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    st = os.lstat(path)
    content: object = None
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            content = file.read()
    elif stat.S_ISLNK(st.st_mode):
        content = os.readlink(path)
    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
    links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
    yield name, (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev, links, content, xattrs)
    if stat.S_ISDIR(st.st_mode):
        for entry in sorted(os.listdir(path)):
            yield from _picture(path + b"/" + entry, name + b"/" + entry)


def leftovers(root: Path) -> list[bytes]:
    """Temporary files anywhere below."""
    return [name for _, _, names in os.walk(os.fsencode(root)) for name in names if name.startswith(b".backdrive-")]


def with_acl(path: Path, name: str = "system.posix_acl_access") -> None:
    """Let user 1234 read, by an ACL; the test is skipped where the file system has none."""
    entries = [(0x01, 6, -1), (0x02, 4, 1234), (0x04, 4, -1), (0x10, 4, -1), (0x20, 0, -1)]
    value = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, rights, who in entries
    )
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error}")
