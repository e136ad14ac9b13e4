"""The platform-neutral read-only file system: one recovery point, or all of them, by inode number.

No FUSE, no WinFsp and no errno in here. Calls that may have to wait for the vault take `wait`: with False they raise
`MustWait` instead, so that an adapter answers at once what is at hand and sends only the rest to a thread. Thread safe;
no lock is held while the vault is read.

Inode numbers are derived (`mount/inodes.py`). An adapter whose kernel remembers numbers says so with `hold` and
`release`; numbers that nobody holds are good for a while only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from cas.errors import BackdriveError
from cas.model import Extra, Node, NodeKind, Owner, Point, WindowsExtra
from cas.store.content import FileContent
from cas.store.reader import Reader
from mount import inodes
from mount.ahead import Prefetcher
from mount.files import ChunkFile, LongFile, OpenFile, OpenFiles, Windows, is_one_chunk
from mount.inodes import ROOT
from mount.nodes import Directory, Nodes, Stale, WrongKind
from mount.pages import MustWait
from mount.timeline import Latest, MachineFolder, Place, PointFolder, Timeline

_NO_XATTRS: Final[dict[bytes, bytes]] = {}
_ACCESS_ACL: Final = b"system.posix_acl_access"


class Attributes(Struct, frozen=True, gc=False):
    """What stat(2) tells. Sizes are bytes, times are ns, `mode` has the type bits; `device` is (major, minor)."""

    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    allocated: int  # bytes of data, without the holes of a sparse file
    mtime: int
    ctime: int
    birth: int
    device: tuple[int, int] = (0, 0)
    lasting: bool = True  # never changes; False for the folders above the points
    acl: bytes | None = None  # the POSIX access ACL, as Linux keeps it; the group bits of `mode` are then its mask


class Usage(NamedTuple):
    """What statfs(2) tells: bytes and number of files."""

    size: int
    files: int


class Entry(NamedTuple):
    """One entry of a listing; `cookie` continues the listing after it."""

    cookie: int
    name: bytes
    attributes: Attributes


class DirectoryHandle:
    """An open directory."""

    __slots__ = ("directory", "inode", "parent_inode", "places")

    def __init__(self, inode: int, parent_inode: int) -> None:
        self.inode = inode
        self.parent_inode = parent_inode
        self.directory: Directory | None = None
        self.places: list[tuple[bytes, Place]] = []  # of a folder above the points, as it was when opened


class View:
    """The file system. `root` is one point, or the timeline of all of them."""

    def __init__(self, reader: Reader, root: Point | Timeline, *, owner: tuple[int, int] = (0, 0)) -> None:
        """`owner` is (uid, gid) of the folders above the points."""
        self._reader = reader
        self._timeline = root if isinstance(root, Timeline) else None
        self._single = PointFolder(ROOT, b"", ROOT, root) if isinstance(root, Point) else None
        self._owner = owner
        self._nodes = Nodes(reader)
        self._prefetcher = Prefetcher(reader)
        self._windows = Windows()
        self._files = OpenFiles()

    def close(self) -> None:
        """Stop reading ahead."""
        self._prefetcher.close()

    # --- what the kernel remembers ---

    def hold(self, inode: int, count: int = 1) -> None:
        """The kernel is about to be told this number, or numbers of the same listing that are no links, `count` times.

        Call it before the answer goes out, and soon: a number just given is remembered only for a while.
        """
        if not inodes.is_special(inode):
            self._nodes.hold(inode, count)

    def release(self, inode: int, count: int) -> None:
        """The kernel has forgotten `count` of the times that it was told."""
        if not inodes.is_special(inode):
            self._nodes.release(inode, count)

    @property
    def remembered(self) -> int:
        """How many directories and linked files are in memory."""
        return len(self._nodes)

    # --- nodes ---

    def attributes(self, inode: int, *, wait: bool = True) -> Attributes:
        """What stat(2) tells of a node. Raises Stale, MustWait and the errors of reading."""
        if inode == ROOT and self._timeline is not None:
            return self._timeline_attributes()
        place = self._place(inode)
        if place is not None:
            return self._place_attributes(place)
        found = self._nodes.find(inode, wait)
        return _attributes(inode, found.node, found.owner)

    def node(self, inode: int, *, wait: bool = True) -> Node | None:
        """The node as the point keeps it; None for the folders above the points. As `attributes`."""
        place = self._place(inode)
        if isinstance(place, PointFolder):
            return place.point.root_node
        if place is not None or (inode == ROOT and self._timeline is not None):
            return None
        return self._nodes.find(inode, wait).node

    def readlink(self, inode: int, *, wait: bool = True) -> bytes:
        """A symlink's target, as it was read. Raises WrongKind, and as `attributes`."""
        place = self._place(inode)
        if isinstance(place, Latest):
            newest = place.machine.newest
            return b"" if newest is None else newest.name
        node = self.node(inode, wait=wait)
        if node is None or node.kind != NodeKind.SYMLINK:
            raise WrongKind("not a symlink")
        return node.content

    def xattrs(self, inode: int, *, wait: bool = True) -> Mapping[bytes, bytes]:
        """Extended attributes, POSIX ACLs among them. As `attributes`."""
        extra = self._extra(inode, wait)
        return _NO_XATTRS if extra is None else extra.xattrs

    def windows(self, inode: int, *, wait: bool = True) -> WindowsExtra | None:
        """What only Windows has: security descriptor, streams, reparse data. As `attributes`."""
        extra = self._extra(inode, wait)
        return None if extra is None else extra.windows

    def open(self, inode: int, stream: bytes = b"", *, wait: bool = True) -> OpenFile:
        """Open a file, or one of its alternate data streams. Raises WrongKind, and as `attributes`."""
        if inodes.is_special(inode):
            raise WrongKind("not a file")
        node = self._nodes.find(inode, wait).node
        if stream:
            windows = None if node.extra is None else node.extra.windows
            for known in windows.streams if windows is not None else []:
                if known.name == stream:
                    return self._open(self._reader.stream_content(known), known.depth)
        if not node.is_file or stream:
            raise WrongKind("not a file")
        if is_one_chunk(node):
            return ChunkFile(self._reader, node, self._prefetcher)
        return self._open(self._reader.content(node), node.depth)

    def _open(self, content: FileContent, depth: int) -> OpenFile:
        return LongFile(self._reader, content, depth, self._prefetcher, self._windows)

    def read(self, inode: int, offset: int, size: int, *, wait: bool = True) -> bytes | memoryview:
        """Bytes of a file by its number, without opening it first; fewer than `size` only where it ends.

        Raises WrongKind, Stale, MustWait and the errors of reading.
        """
        directory = self._nodes.known_parent(inode)
        file = self._files.get(inode, directory)
        if file is None:
            file = self.open(inode, wait=wait)
            self._files.add(inode, directory, file)
        return file.read(offset, size, wait=wait)

    def path(self, inode: int) -> bytes:
        """Where a node is, from the root of the drive, as far as that is at hand: for messages."""
        directory = self._nodes.known_parent(inode)
        parts: list[bytes] = []
        try:
            if not inodes.is_special(inode):
                node, _, directory = self._nodes.find(inode, wait=False)
                parts.append(node.name)
        except (BackdriveError, MustWait, Stale):
            parts.append(b"(an entry that cannot be read)")
        while directory is not None:
            inode = directory.inode
            if directory.name:
                parts.append(directory.name)
            directory = directory.parent
        place = self._place(inode) if inodes.is_special(inode) else None
        if isinstance(place, PointFolder) and self._timeline is not None:
            parts += reversed(self._timeline.path(place))
        return b"/" + b"/".join(reversed(parts))

    def usage(self) -> Usage:
        """The size of what is shown: of the point, or of each machine's newest point."""
        points = [self._single.point] if self._single is not None else []
        if self._timeline is not None:
            points = self._timeline.newest()
        stats = [point.stats for point in points]
        return Usage(
            sum(stat.size for stat in stats), sum(stat.files + stat.directories + stat.others for stat in stats)
        )

    # --- directories ---

    def lookup(self, parent: int, name: bytes, *, hold: bool = False, wait: bool = True) -> Attributes | None:
        """The entry of a directory by its name, or None. With `hold`, as after a call of that name.

        Raises WrongKind, and as `attributes`.
        """
        if self._is_folder(parent, wait):
            assert self._timeline is not None
            place = self._timeline.entry(self._machine(parent), name)
            return None if place is None else self._place_attributes(place)
        found = self._nodes.lookup(self._directory(parent, wait), name, hold, wait)
        return None if found is None else _attributes(*found)

    def is_lasting(self, inode: int) -> bool:
        """Whether the entries of a directory never change."""
        if self._timeline is None or not inodes.is_special(inode):
            return True
        return isinstance(self._place(inode), PointFolder)

    def open_directory(self, inode: int, *, wait: bool = True) -> DirectoryHandle:
        """Open a directory for listing; close it with `close_directory`. Raises WrongKind, and as `attributes`."""
        if self._is_folder(inode, wait):
            assert self._timeline is not None
            handle = DirectoryHandle(inode, ROOT)
            handle.places = self._timeline.entries(self._machine(inode))
            return handle
        directory = self._directory(inode, wait)
        place = self._place(inode)
        parent = place.parent if isinstance(place, PointFolder) else ROOT
        handle = DirectoryHandle(inode, parent if directory.parent is None else directory.parent.inode)
        handle.directory = directory
        self._nodes.hold_directory(directory)
        return handle

    def close_directory(self, handle: DirectoryHandle) -> None:
        """Done with it."""
        directory, handle.directory = handle.directory, None
        if directory is not None:
            self._nodes.release_directory(directory)

    def entries(self, handle: DirectoryHandle, cookie: int = 0, *, wait: bool = True) -> Iterator[Entry]:
        """The entries after `cookie` (0: all), without `.` and `..`, up to the end of the page that has the first one.

        Nothing left: an empty iterator. Raises MustWait and the errors of reading, at once.
        """
        directory = handle.directory
        if directory is None:
            listed = enumerate(handle.places[cookie:], cookie + 1)
            return iter([Entry(number, name, self._place_attributes(place)) for number, (name, place) in listed])
        nodes, owners = self._nodes.rest_of_page(directory, cookie, wait)
        return self._listed(directory, cookie, nodes, owners)

    def _listed(self, directory: Directory, position: int, nodes: list[Node], owners: list[Owner]) -> Iterator[Entry]:
        base = inodes.entry_inode(directory.number, 0)
        for node in nodes:
            owner = owners[node.owner]
            plain = node.extra is None or node.extra.link is None
            inode = base + position if plain else self._nodes.inode(directory, position, node, owner)
            position += 1
            yield Entry(position, node.name, _attributes(inode, node, owner))

    # --- the folders above the points ---

    def _place(self, inode: int) -> Place | None:
        """What a special number stands for; None for the root above the points and for any other number."""
        if not inodes.is_special(inode):
            return None
        if self._timeline is None:
            if inode == ROOT:
                return self._single
            raise Stale
        if inode == ROOT:
            return None
        place = self._timeline.place(inode)
        if place is None:
            raise Stale
        return place

    def _is_folder(self, inode: int, wait: bool) -> bool:
        """Whether it is a folder above the points; if so, the points are up to date afterwards."""
        timeline = self._timeline
        if timeline is None or not inodes.is_special(inode):
            return False
        place = self._place(inode)
        if isinstance(place, PointFolder):
            return False
        if isinstance(place, Latest):
            raise WrongKind("not a directory")
        if timeline.due:
            if not wait:
                raise MustWait
            timeline.refresh()
        return True

    def _machine(self, inode: int) -> MachineFolder | None:
        """The machine whose folder it is; None for the folder of the machines."""
        assert self._timeline is not None
        if inode == ROOT:
            return self._timeline.top
        place = self._timeline.place(inode)
        assert isinstance(place, MachineFolder)
        return place

    def _place_attributes(self, place: Place) -> Attributes:
        if isinstance(place, PointFolder):
            node, when = place.point.root_node, place.point.started
            lasting = place is self._single  # among others, retention may remove it
            if node is None:
                return Attributes(place.inode, 0o40755, 1, 0, 0, 0, 0, when, when, 0, lasting=lasting)
            ids = (place.point.root_owner.uid, place.point.root_owner.gid)
            acl = None if node.extra is None else node.extra.xattrs.get(_ACCESS_ACL)
            times = (node.mtime, node.ctime, 0)
            return Attributes(place.inode, node.st_mode, 1, *ids, 0, 0, *times, lasting=lasting, acl=acl)
        machine = place.machine if isinstance(place, Latest) else place
        when = 0 if machine.newest is None else machine.newest.point.started
        if isinstance(place, MachineFolder):
            return Attributes(place.inode, 0o40555, 1, *self._owner, 0, 0, when, when, 0, lasting=False)
        size = len(self.readlink(place.inode))
        return Attributes(place.inode, 0o120777, 1, *self._owner, size, 0, when, when, 0, lasting=False)

    def _timeline_attributes(self) -> Attributes:
        assert self._timeline is not None
        when = max((point.started for point in self._timeline.newest()), default=0)
        return Attributes(ROOT, 0o40555, 1, *self._owner, 0, 0, when, when, 0, lasting=False)

    def _directory(self, inode: int, wait: bool) -> Directory:
        place = self._place(inode)
        if isinstance(place, PointFolder):
            return self._nodes.make_directory(inode, b"", place.point.root, place.point.id.encode(), None)
        return self._nodes.directory(inode, wait)

    def _extra(self, inode: int, wait: bool) -> Extra | None:
        node = self.node(inode, wait=wait)
        return None if node is None else node.extra


def _attributes(inode: int, node: Node, owner: Owner) -> Attributes:
    extra = node.extra
    links = 1  # of directories too, as btrfs does: it says that the number of subdirectories is not told
    allocated = node.size if node.kind == NodeKind.FILE else 0
    device = (0, 0)
    birth = 0
    acl = None
    if extra is not None:
        if extra.link is not None:
            links = extra.link.count
        if extra.extents is not None:
            allocated = sum(length for _, length in extra.extents)
        if extra.device is not None:
            device = extra.device
        birth = extra.birth
        acl = extra.xattrs.get(_ACCESS_ACL)
    ids = (owner.uid, owner.gid)
    times = (node.mtime, node.ctime, birth)
    return Attributes(inode, node.st_mode, links, *ids, node.size, allocated, *times, device, True, acl)


__all__ = ["Attributes", "DirectoryHandle", "Entry", "MustWait", "Stale", "Usage", "View", "WrongKind"]
