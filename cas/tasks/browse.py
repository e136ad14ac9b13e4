"""Looking into recovery points: walk, resolve, list, find, cat, diff and the versions of a file.

Paths are absolute inside a point, `/` is its root, and no symbolic link is ever followed. Everything here is plain
data; rendering belongs to the callers.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from cas.errors import Damaged, FormatTooNew, InvalidRequest, PathNotFound, PointNotFound
from cas.ids import ChunkId
from cas.model import Extra, Node, NodeKind, Owner, Point
from cas.repository import Problems, Repository
from cas.store.reader import Reader

Entry = tuple[bytes, Node, Owner]

_ZEROS: Final = memoryview(bytes(1 << 16))


def parts_of(path: bytes) -> list[bytes]:
    """The names in a path; empty for the root."""
    return [part for part in path.split(b"/") if part and part != b"."]


def shown(path: bytes) -> str:
    """A path for a message: bytes that are no UTF-8 are spelled out."""
    return path.decode(errors="backslashreplace")


def root_of(point: Point) -> tuple[Node, Owner]:
    """The node of `/`, and its owner."""
    node = point.root_node
    if node is None:
        node = Node(b"", NodeKind.DIRECTORY, 0o755, 0, 0, 0, 0, 0, point.root, extra=Extra(partial=True))
    return msgspec.structs.replace(node, name=b"", kind=NodeKind.DIRECTORY, content=point.root), point.root_owner


def resolve(reader: Reader, point: Point, path: bytes) -> tuple[Node, Owner]:
    """The node at `path`. Raises PathNotFound, and as the reader does."""
    node, owner = root_of(point)
    for part in parts_of(path):
        found = reader.lookup(ChunkId(node.content), part) if node.is_directory else None
        if found is None:
            raise PathNotFound(point.id, shown(path))
        node, owner = found
    return node, owner


def walk(reader: Reader, point: Point, path: bytes = b"/") -> Iterator[Entry]:
    """The entry at `path` and all below it, each directory before what is in it, names in order.

    Raises PathNotFound, and as the reader does.
    """
    node, owner = resolve(reader, point, path)
    start = b"/" + b"/".join(parts_of(path))
    yield start, node, owner
    if node.is_directory:
        yield from _below(reader, start, node)


def _below(reader: Reader, path: bytes, directory: Node) -> Iterator[Entry]:
    stack = [(path.rstrip(b"/"), reader.entries(ChunkId(directory.content)))]
    while stack:
        above, entries = stack[-1]
        for node, owner in entries:
            here = above + b"/" + node.name
            yield here, node, owner
            if node.is_directory:
                stack.append((here, reader.entries(ChunkId(node.content))))
                break
        else:
            stack.pop()


def ls(reader: Reader, point: Point, path: bytes = b"/", *, recursive: bool = False) -> Iterator[Entry]:
    """What is in the directory at `path`; anything else lists itself. Raises PathNotFound, and as the reader does."""
    node, owner = resolve(reader, point, path)
    start = b"/" + b"/".join(parts_of(path))
    if not node.is_directory:
        yield start, node, owner
    elif recursive:
        yield from _below(reader, start, node)
    else:
        above = start.rstrip(b"/")
        for child, its_owner in reader.entries(ChunkId(node.content)):
            yield above + b"/" + child.name, child, its_owner


# --- find -----------------------------------------------------------------------------------------------------------


def find(
    reader: Reader, point: Point, pattern: str, path: bytes = b"/", *, ignore_case: bool = False
) -> Iterator[Entry]:
    """Entries that a glob matches: their names, or, where the pattern has a slash, their full paths.

    `*` stays within a name and `**` spans directories; a pattern with a slash but none in front may begin anywhere. The
    root has no name and is never among them. Raises PathNotFound, and as the reader does.
    """
    matches = _matcher(pattern, ignore_case)
    for entry in walk(reader, point, path):
        if entry[0] != b"/" and matches(entry[0]):
            yield entry


def _matcher(pattern: str, ignore_case: bool) -> Callable[[bytes], bool]:
    flags = re.IGNORECASE if ignore_case else 0
    if "/" not in pattern:
        name = re.compile(fnmatch.translate(pattern), flags)
        return lambda path: name.match(os.fsdecode(path.rsplit(b"/", 1)[-1])) is not None
    segments = [segment for segment in pattern.split("/") if segment]
    if not pattern.startswith("/"):
        segments.insert(0, "**")
    compiled = [None if segment == "**" else re.compile(fnmatch.translate(segment), flags) for segment in segments]
    return lambda path: _match_path(compiled, os.fsdecode(path).strip("/").split("/"))


def _match_path(segments: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Whether the names match the segments, None standing for any number of names."""
    reached = {0}  # positions in `names` up to which the segments so far can match
    for segment in segments:
        if segment is None:
            reached = set(range(min(reached), len(names) + 1)) if reached else reached
        else:
            reached = {at + 1 for at in reached if at < len(names) and segment.match(names[at])}
    return len(names) in reached


# --- cat ------------------------------------------------------------------------------------------------------------


def cat(reader: Reader, point: Point, path: bytes, write: Callable[[memoryview], object]) -> int:
    """Hand a file's content to `write`, holes as zeros; returns its size in bytes.

    Raises PathNotFound, InvalidRequest where it is no file, and as the reader does.
    """
    node, _ = resolve(reader, point, path)
    if not node.is_file:
        what = NodeKind(node.kind).name.lower().replace("_", " ")
        raise InvalidRequest(f"{shown(path)} is no file but a {what}, and has no content to show.")
    position = 0
    for piece in reader.content(node).pieces():
        _write_zeros(write, piece.offset - position)
        data = reader.chunk(piece.chunk)
        write(data[piece.skip : piece.skip + piece.length])
        position = piece.offset + piece.length
    _write_zeros(write, node.size - position)
    return node.size


def _write_zeros(write: Callable[[memoryview], object], count: int) -> None:
    while count > 0:
        part = min(count, len(_ZEROS))
        write(_ZEROS[:part])
        count -= part


# --- diff -----------------------------------------------------------------------------------------------------------


class ChangeKind(StrEnum):
    """How an entry differs between two points."""

    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "content"
    METADATA = "metadata"
    TYPE = "type"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry that differs; `before` or `after` is None where it is not there."""

    path: bytes
    kind: ChangeKind
    before: Node | None
    after: Node | None


_Pair = tuple[Node, Owner]


def diff(reader: Reader, a: Point, b: Point, path: bytes = b"/") -> Iterator[Change]:
    """What changed at and below `path` from point `a` to point `b`. Equal directories are not entered.

    Raises PathNotFound where neither point has the path, and as the reader does.
    """
    before, after = _resolve_or_none(reader, a, path), _resolve_or_none(reader, b, path)
    if before is None and after is None:
        raise PathNotFound(a.id, shown(path))
    yield from _compare(reader, b"/" + b"/".join(parts_of(path)), before, after)


def _resolve_or_none(reader: Reader, point: Point, path: bytes) -> _Pair | None:
    try:
        return resolve(reader, point, path)
    except PathNotFound:
        return None


def _compare(reader: Reader, path: bytes, before: _Pair | None, after: _Pair | None) -> Iterator[Change]:
    """The differences of two entries and of all below them."""
    stack = [iter([(path, before, after)])]
    while stack:
        for here, old, new in stack[-1]:
            kind = _change(old, new)
            if kind is not None:
                yield Change(here, kind, old and old[0], new and new[0])
            old_tree, new_tree = _tree(old), _tree(new)
            if old_tree != new_tree:
                stack.append(_merged(reader, here.rstrip(b"/"), old_tree, new_tree))
                break
        else:
            stack.pop()


def _tree(entry: _Pair | None) -> ChunkId | None:
    return ChunkId(entry[0].content) if entry is not None and entry[0].is_directory else None


def _merged(
    reader: Reader, above: bytes, before: ChunkId | None, after: ChunkId | None
) -> Iterator[tuple[bytes, _Pair | None, _Pair | None]]:
    """The entries of two directories side by side, in the order of their names."""
    olds = reader.entries(before) if before is not None else iter(())
    news = reader.entries(after) if after is not None else iter(())
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old[0].name < new[0].name):
            assert old is not None
            yield above + b"/" + old[0].name, old, None
            old = next(olds, None)
        elif old is None or new[0].name < old[0].name:
            yield above + b"/" + new[0].name, None, new
            new = next(news, None)
        else:
            yield above + b"/" + old[0].name, old, new
            old, new = next(olds, None), next(news, None)


def _change(old: _Pair | None, new: _Pair | None) -> ChangeKind | None:
    if old is None or new is None:
        return ChangeKind.ADDED if old is None else ChangeKind.REMOVED
    (was, owner_was), (now, owner_now) = old, new
    if was.kind != now.kind:
        return ChangeKind.TYPE
    if not was.is_directory and _content_key(was) != _content_key(now):
        return ChangeKind.CONTENT
    if owner_was != owner_now or _attributes(was) != _attributes(now):
        return ChangeKind.METADATA
    return None


def _content_key(node: Node) -> object:
    extra = node.extra or Extra()
    return node.size, node.content, node.depth, extra.extents, extra.device, extra.windows and extra.windows.streams


def _attributes(node: Node) -> object:
    """What a person would call the metadata: inode numbers and ctime are the file system's own.

    A directory's mtime only says that an entry came or went, and that entry is told anyway.
    """
    extra = node.extra or Extra()
    return node.mode, None if node.is_directory else node.mtime, extra.xattrs, extra.windows


# --- versions -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Version:
    """One state of a file, and the points that hold it, oldest first."""

    node: Node
    owner: Owner
    points: list[Point]

    @property
    def first(self) -> Point:
        return self.points[0]

    @property
    def last(self) -> Point:
        return self.points[-1]


def versions(
    repository: Repository, machine: str | None, path: bytes, problems: Problems | None = None
) -> list[Version]:
    """The distinct versions of a file, by content, size and mtime, in the order in which they first appear.

    `machine` is a name or an id; None looks at all. What cannot be read goes to `problems`, or is raised. Raises
    PathNotFound where no point has the path.
    """
    reader = repository.reader()
    found: dict[bytes, Version] = {}
    latest = ""
    for point in repository.points(problems):
        if machine is not None and machine not in (point.machine, point.machine_id):
            continue
        latest = point.id
        try:
            node, owner = resolve(reader, point, path)
        except PathNotFound:
            continue
        except (Damaged, FormatTooNew) as error:
            if problems is None:
                raise
            problems.errors.append(error)
            continue
        key = msgspec.msgpack.encode((node.kind, node.mtime, _content_key(node)))  # what can be hashed
        version = found.get(key)
        if version is None:
            found[key] = Version(node, owner, [point])
        else:
            version.points.append(point)
    if not latest:
        raise PointNotFound("There is no recovery point to look into.", "Run 'backdrive backup' first.")
    if not found:
        raise PathNotFound(latest, shown(path))
    return list(found.values())
