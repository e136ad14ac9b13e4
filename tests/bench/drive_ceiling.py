"""How fast a drive could be at best: a trivial file system in memory over our own FUSE session, timed beside others.

    python -m tests.bench.drive_ceiling SOURCE [--runs N] [--big MIB] [--huge ENTRIES]

SOURCE is a real tree, whose names and attributes are shown; files are made of zeros. Where pyfuse3 can be imported, the
same file system runs over that as well. The page cache is dropped between, for which this must run as root.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import Any

from mount import fuse_wire as wire
from mount.fuse_session import Counters, Operation, Refused, Session

_FOR_EVER = 365 * 86400
_BLOCK = memoryview(bytes(1 << 20))
_SMALL = 128 << 10
_SMALL_FILES = 4000


@dataclass(slots=True)
class Node:
    """One entry. `number` is its inode."""

    number: int
    mode: int
    size: int
    mtime: int  # ns
    ids: tuple[int, int] = (0, 0)
    target: bytes = b""
    children: list[tuple[bytes, Node]] = field(default_factory=list)
    names: dict[bytes, Node] = field(default_factory=dict)
    kept: object = None  # what another binding makes of it


def load(source: Path, big: int, huge: int) -> list[Node]:
    """All nodes by number, the root is 1: a copy of SOURCE, `big.bin` of so many bytes, and the directory `huge`."""
    nodes = [Node(0, 0, 0, 0)]

    def add(parent: Node | None, name: bytes, mode: int, size: int, mtime: int) -> Node:
        node = Node(len(nodes), mode, size, mtime)
        nodes.append(node)
        if parent is not None:
            parent.children.append((name, node))
            parent.names[name] = node
        return node

    root = add(None, b"", S_IFDIR | 0o755, 0, 0)
    stack = [(add(root, os.fsencode(source.name), S_IFDIR | 0o755, 0, 0), os.fsencode(source))]
    while stack:
        folder, path = stack.pop()
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            node = add(folder, entry.name, status.st_mode, status.st_size, status.st_mtime_ns)
            node.ids = status.st_uid, status.st_gid
            if entry.is_symlink():
                node.target = os.readlink(entry.path)
            elif entry.is_dir():
                stack.append((node, entry.path))
    add(root, b"big.bin", S_IFREG | 0o644, big, 0)
    folder = add(root, b"huge", S_IFDIR | 0o755, 0, 0)
    for number in range(huge):
        add(folder, b"file number %07d" % number, S_IFREG | 0o644, 0, number)
    return nodes


class InMemory:
    """The file system over our wire: as little as can be done for an answer."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.buffer = bytearray(1 << 20)
        self.operations: dict[int, Operation] = {
            wire.LOOKUP: self.lookup,
            wire.GETATTR: self.getattr,
            wire.READLINK: lambda node, body, wait: self.nodes[node].target,
            wire.READ: self.read,
            wire.READDIRPLUS: self.readdirplus,
            wire.FORGET: lambda node, body, wait: None,
            wire.BATCH_FORGET: lambda node, body, wait: None,
            wire.STATFS: lambda node, body, wait: wire.pack_statfs(4096, 0, 0, 255),
        }
        self.flags = wire.ASYNC_READ | wire.PARALLEL_DIROPS | wire.CACHE_SYMLINKS | wire.NO_OPENDIR_SUPPORT

    @staticmethod
    def values(node: Node) -> tuple[int, ...]:
        seconds, nanoseconds = divmod(node.mtime, 1_000_000_000)
        times = (seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds)
        return (node.number, node.size, (node.size + 511) // 512, *times, node.mode, 1, *node.ids, 0, 131072, 0)

    def lookup(self, node: int, body: memoryview, wait: bool) -> bytes:
        found = self.nodes[node].names.get(bytes(body[:-1]))
        if found is None:
            raise Refused(errno.ENOENT)
        return wire.ENTRY_OUT.pack(found.number, 0, _FOR_EVER, _FOR_EVER, 0, 0, *self.values(found))

    def getattr(self, node: int, body: memoryview, wait: bool) -> bytes:
        return wire.ATTR_OUT.pack(_FOR_EVER, 0, 0, *self.values(self.nodes[node]))

    def read(self, node: int, body: memoryview, wait: bool) -> memoryview:
        _, offset, size = wire.READ_IN.unpack_from(body)
        return _BLOCK[: max(min(size, self.nodes[node].size - offset), 0)]

    def readdirplus(self, node: int, body: memoryview, wait: bool) -> memoryview:
        _, start, size = wire.READ_IN.unpack_from(body)
        children, buffer, position = self.nodes[node].children, self.buffer, 0
        for index in range(start, len(children)):
            name, child = children[index]
            following = position + wire.direntplus_size(len(name))
            if following > size:
                break
            entry = (child.number, 0, _FOR_EVER, _FOR_EVER, 0, 0, *self.values(child))
            tail = (child.number, index + 1, len(name), child.mode >> 12)
            wire.DIRENTPLUS.pack_into(buffer, position, *entry, *tail)
            position += wire.DIRENTPLUS.size
            buffer[position : position + len(name)] = name
            position = following
        return memoryview(buffer)[:position]


def serve_ours(nodes: list[Node], target: str) -> None:
    """Serve over our own session."""
    drive = InMemory(nodes)

    def fault(opcode: int, node: int, error: Exception) -> int:
        raise error

    Session(drive.operations, fault, drive.flags, Counters()).serve(target, lambda: None, allow_other=True)


def serve_pyfuse3(nodes: list[Node], target: str) -> None:
    """Serve over pyfuse3, with attributes that are made once."""
    pyfuse3: Any = import_module("pyfuse3")
    trio: Any = import_module("trio")
    base: type = pyfuse3.Operations

    class Operations(base):  # type: ignore[misc]
        supports_dot_lookup = False
        enable_writeback_cache = False

        def entry(self, node: Node) -> object:
            if node.kept is None:
                made = pyfuse3.EntryAttributes()
                made.st_ino, made.st_mode, made.st_nlink, made.st_size = node.number, node.mode, 1, node.size
                made.st_uid, made.st_gid = node.ids
                made.st_mtime_ns = made.st_ctime_ns = made.st_atime_ns = node.mtime
                made.st_blocks, made.st_blksize = (node.size + 511) // 512, 131072
                made.entry_timeout = made.attr_timeout = _FOR_EVER
                node.kept = made
            return node.kept

        async def lookup(self, parent: int, name: bytes, context: object) -> object:
            found = nodes[parent].names.get(name)
            if found is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self.entry(found)

        async def getattr(self, number: int, context: object) -> object:
            return self.entry(nodes[number])

        async def readlink(self, number: int, context: object) -> bytes:
            return nodes[number].target

        async def opendir(self, number: int, context: object) -> int:
            return number

        async def readdir(self, number: int, start: int, token: object) -> None:
            children = nodes[number].children
            for index in range(start, len(children)):
                name, child = children[index]
                if not pyfuse3.readdir_reply(token, name, self.entry(child), index + 1):
                    return

        async def open(self, number: int, flags: int, context: object) -> object:
            return pyfuse3.FileInfo(fh=number, keep_cache=True)

        async def read(self, number: int, offset: int, size: int) -> memoryview:
            return _BLOCK[: max(min(size, nodes[number].size - offset), 0)]

        async def flush(self, number: int) -> None:
            raise pyfuse3.FUSEError(errno.ENOSYS)

        async def release(self, number: int) -> None: ...

        async def releasedir(self, number: int) -> None: ...

        async def forget(self, inodes: object) -> None: ...

    pyfuse3.init(Operations(), target, {"ro", "nosuid", "nodev", "default_permissions", "allow_other"})
    trio.run(pyfuse3.main)


_SERVERS = {"ours": serve_ours, "pyfuse3": serve_pyfuse3}


def have(name: str) -> bool:
    """Whether a server can run here."""
    if name == "ours":
        return True
    return all(find_spec(module) for module in ("pyfuse3", "trio"))


@contextmanager
def mounted(name: str, arguments: argparse.Namespace, target: Path) -> Iterator[None]:
    """The file system in a process of its own."""
    shape = [str(arguments.source), "--big", str(arguments.big), "--huge", str(arguments.huge)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.drive_ceiling", *shape, "--serve", name, str(target)]
    )
    deadline = time.monotonic() + 60
    while not os.path.ismount(target):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not mount")
        time.sleep(0.05)
    (target / "big.bin").stat()
    device = target.stat().st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    read_ahead.write_text(str(arguments.read_ahead))
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", str(target)], check=True)
        process.wait()


def measure(arguments: argparse.Namespace, target: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds by work and server, in turn."""
    small = target.parent / "small.list"
    chosen: list[bytes] = []
    for folder, _, names in os.walk(arguments.source):
        for name in names:
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size < _SMALL:
                chosen.append(os.fsencode(target / arguments.source.name / path.relative_to(arguments.source)))
    small.write_bytes(b"\0".join(sorted(chosen)[:_SMALL_FILES]))
    works = {
        "find -ls": f"find {target}/{arguments.source.name} -ls",
        "find -ls again": f"find {target}/{arguments.source.name} -ls",
        f"{_SMALL_FILES} small files": f"xargs -0 cat < {small}",
        f"{arguments.big} MiB": f"dd if={target}/big.bin bs=1M",
        **({"ls -f of the huge one": f"ls -f {target}/huge"} if arguments.huge else {}),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.runs):
        for name in filter(have, _SERVERS):
            with mounted(name, arguments, target):
                for work, command in works.items():
                    if not work.endswith("again"):
                        Path("/proc/sys/vm/drop_caches").write_text("3")
                        time.sleep(0.2)
                    start = time.perf_counter()
                    subprocess.run(["sh", "-c", f"{command} > /dev/null 2>&1"], check=True)
                    found.setdefault(work, {}).setdefault(name, []).append(time.perf_counter() - start)
    return found


def main() -> None:
    """Parse; serve, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--big", type=int, default=2048, help="MiB of the large file")
    parser.add_argument("--huge", type=int, default=0, help="entries of a large directory")
    parser.add_argument("--read-ahead", type=int, default=1024, help="KiB")
    parser.add_argument("--serve", nargs=2, metavar=("SERVER", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.source = arguments.source.resolve()
    if arguments.serve:
        name, target = arguments.serve
        _SERVERS[name](load(arguments.source, arguments.big << 20, arguments.huge), target)
        return
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        (place / "m").mkdir()
        found = measure(arguments, place / "m")
    finally:
        shutil.rmtree(place)
    for work, by_name in found.items():
        cells = [f"{name} {min(times):.2f} / {statistics.median(times):.2f}" for name, times in by_name.items()]
        print(f"{work}, best / median s: {', '.join(cells)}")


if __name__ == "__main__":
    main()
