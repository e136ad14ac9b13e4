"""Whatever happens to a tree between backups, every point stays what the tree was."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cas.ids import PointId
from cas.model import Node, NodeKind
from cas.tasks.check import check
from cas.vault.memory import MemoryVault
from tests.engine import Entry, World, cheap_keys, make_world, read_point, walk_disk

NAMES = ("a", "b", "c", "dir", "Dir", "\udcff", "x" * 40)
KINDS = {stat.S_IFREG: NodeKind.FILE, stat.S_IFDIR: NodeKind.DIRECTORY, stat.S_IFLNK: NodeKind.SYMLINK}
KINDS[stat.S_IFIFO] = NodeKind.FIFO


class Seen(NamedTuple):
    """An entry as plain calls of the system show it."""

    kind: int
    mode: int
    mtime: int
    content: bytes
    xattrs: dict[bytes, bytes]
    link: tuple[int, int] | None


class Step(NamedTuple):
    """One edit. Paths are numbers that choose among what is there."""

    action: str
    path: int
    name: str
    data: bytes


def blob(kind: int, size: int) -> bytes:
    """Content: random, even or periodic, so that some of it repeats in other files."""
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return (b"%d, " % size) * (size // 8 + 1)
    return b"".join(
        bytes((seed * seed * 7 + kind) % 256 for seed in range(start, start + 97)) for start in range(0, size, 97)
    )


actions = st.sampled_from(
    [
        "write",
        "append",
        "truncate",
        "punch",
        "rename",
        "chmod",
        "link",
        "symlink",
        "mkdir",
        "fifo",
        "xattr",
        "delete",
        "utime",
    ]
)
blobs = st.builds(blob, st.integers(0, 6), st.integers(0, 60_000))
steps = st.builds(Step, actions, st.integers(0, 1000), st.sampled_from(NAMES), blobs)


def snapshot(root: Path) -> dict[bytes, Seen]:
    found = {}
    for path in walk_disk(os.fsencode(root)):
        status = os.lstat(path)
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        content = b""
        if kind == NodeKind.FILE:
            with open(path, "rb") as file:
                content = file.read()
        elif kind == NodeKind.SYMLINK:
            content = os.readlink(path)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
        link = (status.st_dev, status.st_ino) if status.st_nlink > 1 and kind != NodeKind.DIRECTORY else None
        found[path] = Seen(kind, status.st_mode & 0o7777, status.st_mtime_ns, content, xattrs, link)
    return found


def seen(entry: Entry) -> Seen:
    node: Node = entry.node
    assert entry.error is None
    content = entry.content or b""
    if node.kind == NodeKind.SYMLINK:
        content = node.content
    xattrs = {} if node.extra is None else node.extra.xattrs
    group = node.link_group
    return Seen(node.kind, node.mode, node.mtime, content, xattrs, None if group is None else group[:2])


def apply(root: Path, step: Step) -> None:
    """Do it as far as it can be done."""
    there = sorted(walk_disk(os.fsencode(root)))
    chosen = Path(os.fsdecode(there[step.path % len(there)]))
    directory = chosen if chosen.is_dir() and not chosen.is_symlink() else chosen.parent
    new = directory / step.name
    plain = chosen.is_file() and not chosen.is_symlink()
    try:
        match step.action:
            case "write" if plain or not os.path.lexists(new):
                (chosen if plain else new).write_bytes(step.data)
            case "append" if plain:
                with chosen.open("ab") as file:
                    file.write(step.data)
            case "truncate" if plain:
                os.truncate(chosen, len(step.data))
            case "punch" if plain:
                size = chosen.stat().st_size
                os.truncate(chosen, size // 2)
                os.truncate(chosen, size // 2 + 100_000)
            case "rename" if chosen != root and not new.is_relative_to(chosen):
                chosen.rename(new)
            case "chmod" if not chosen.is_symlink():
                chosen.chmod(0o600 | len(step.data) % 0o200 | (0o100 if chosen.is_dir() else 0))
            case "link" if plain and not os.path.lexists(new):
                os.link(chosen, new)
            case "symlink" if not os.path.lexists(new):
                new.symlink_to(step.name * 3)
            case "mkdir" if not os.path.lexists(new):
                new.mkdir()
            case "fifo" if not os.path.lexists(new):
                os.mkfifo(new)
            case "xattr" if plain or directory == chosen:
                os.setxattr(chosen, "user.x", step.data[:100])
            case "delete" if chosen != root:
                chosen.rmdir() if chosen.is_dir() and not chosen.is_symlink() else chosen.unlink()
            case "utime" if not chosen.is_symlink():
                os.utime(chosen, ns=(1, len(step.data) * 1_000_000_007))
            case _:
                pass
    except OSError:
        pass  # a directory that is not empty, a directory over a file, ...


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(steps, min_size=1, max_size=12), min_size=2, max_size=5))
def test_every_point_stays_what_the_tree_was(days: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory(prefix="backdrive-points-") as name, pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        root = Path(name) / "source"
        root.mkdir()
        world = make_world(MemoryVault(), Path(name) / "cache")
        kept: dict[PointId, dict[bytes, Seen]] = {}
        for day in days:
            for step in day:
                apply(root, step)
            result = world.backup(root)
            assert result.point is not None
            assert result.warnings == []
            kept[result.point.id] = snapshot(root)
        assert_points(world, root, kept)
        assert_points(World(world.vault, world.id, world.secret, Path(name) / "other"), root, kept)
        time.sleep(0.03)  # beyond the clock's tick: the next run knows each file
        world.backup(root)
        assert world.backup(root).stats["opened"] == 0


def assert_points(world: World, root: Path, kept: dict[PointId, dict[bytes, Seen]]) -> None:
    with world.open() as repository:
        repository.refresh()
        reader = repository.reader()
        for point in repository.points():
            entries = read_point(reader, point)
            below = os.fsencode(root)
            found = {path: seen(entry) for path, entry in entries.items() if path.startswith(below)}
            assert found == kept[point.id]
        report = check(repository, 100)
        assert report.ok, report
