"""The nodes of recovery points by inode number: which directories and links are known, and what an inode stands for.

Thread safe; no lock is held while the vault is read. `wait` as in `mount/view.py`.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from cas.ids import ChunkId
from cas.model import Node, NodeKind, Owner
from cas.store.reader import Reader
from mount import inodes
from mount.inodes import Table
from mount.pages import Outline, Pages

_IDLE: Final = 4096  # directories and linked files kept that nobody holds


class Stale(Exception):
    """The number means nothing any more."""


class WrongKind(Exception):
    """The node is not of the kind that the call is for."""


class Directory:
    """A directory that somebody looked into."""

    __slots__ = ("inode", "name", "number", "outline", "parent", "point", "tree")

    def __init__(
        self, number: int, inode: int, name: bytes, tree: ChunkId, point: bytes, parent: Directory | None
    ) -> None:
        self.number = number
        self.inode = inode
        self.name = name
        self.tree = tree
        self.point = point
        self.parent = parent
        self.outline: Outline | None = None


class Found(NamedTuple):
    """A node in its place."""

    node: Node
    owner: Owner
    directory: Directory


class Nodes:
    """Directories and linked files by number: those that the kernel knows, and of the others the latest used."""

    def __init__(self, reader: Reader) -> None:
        self._lock = threading.Lock()
        self._directories: Table[Directory] = Table(_IDLE)
        self._links: Table[Found] = Table(_IDLE)
        self._pages = Pages(reader)

    def __len__(self) -> int:
        with self._lock:
            return len(self._directories) + len(self._links)

    # --- what the kernel remembers ---

    def hold(self, inode: int, count: int) -> None:
        """As in `View`."""
        with self._lock:
            if inodes.is_link(inode):
                link = self._links.get(inode)
                if link is not None:
                    self._links.hold(inode, link, count)
            else:
                number, _ = inodes.split_entry(inode)
                directory = self._directories.get(number)
                if directory is not None:
                    self._directories.hold(number, directory, count)

    def release(self, inode: int, count: int) -> None:
        """As in `View`."""
        with self._lock:
            if inodes.is_link(inode):
                self._links.release(inode, count)
            else:
                self._directories.release(inodes.split_entry(inode)[0], count)

    def hold_directory(self, directory: Directory) -> None:
        """Keep it until `release_directory`."""
        with self._lock:
            self._directories.hold(directory.number, directory)

    def release_directory(self, directory: Directory) -> None:
        """Undo `hold_directory`."""
        with self._lock:
            self._directories.release(directory.number)

    # --- by number ---

    def find(self, inode: int, wait: bool) -> Found:
        """The node of a number that is not special. Raises Stale, MustWait and the errors of reading."""
        if inodes.is_special(inode):
            raise Stale
        with self._lock:
            if inodes.is_link(inode):
                link = self._links.get(inode)
                if link is None:
                    raise Stale
                return link
            number, position = inodes.split_entry(inode)
            directory = self._directories.get(number)
        if directory is None:
            raise Stale
        outline = self.outline(directory, wait)
        if position >= outline.total:
            raise Stale
        start, page = self._pages.page(outline, position, wait)
        node = page.nodes[position - start]
        return Found(node, page.owners[node.owner], directory)

    def known_parent(self, inode: int) -> Directory | None:
        """The directory that an entry's number lies in, where it is known; nothing is read."""
        if inodes.is_special(inode) or inodes.is_link(inode):
            return None
        with self._lock:
            return self._directories.get(inodes.split_entry(inode)[0])

    def directory(self, inode: int, wait: bool) -> Directory:
        """The directory that has a number that is not special. Raises WrongKind, and as `find`."""
        with self._lock:
            # Its number follows from the point and its inode, so most are found without looking into the parent.
            above = None if inodes.is_link(inode) else self._directories.get(inodes.split_entry(inode)[0])
            known = None if above is None else self._known(above.point, inode)
        if known is not None:
            return known
        node, _, parent = self.find(inode, wait)
        if node.kind != NodeKind.DIRECTORY:
            raise WrongKind("not a directory")
        return self.make_directory(inode, node.name, ChunkId(node.content), parent.point, parent)

    def make_directory(
        self, inode: int, name: bytes, tree: ChunkId, point: bytes, parent: Directory | None
    ) -> Directory:
        """The directory that has the inode in the point; made where it is not known."""
        with self._lock:
            known = self._known(point, inode)
            if known is not None:
                return known
            number = inodes.directory_number(point, inode)
            while self._directories.get(number) is not None:
                number = inodes.next_directory_number(number)
            directory = Directory(number, inode, name, tree, point, parent)
            self._directories.add(number, directory)
            return directory

    def _known(self, point: bytes, inode: int) -> Directory | None:
        number = inodes.directory_number(point, inode)
        while (known := self._directories.get(number)) is not None:
            if known.inode == inode and known.point == point:
                return known
            number = inodes.next_directory_number(number)
        return None

    # --- entries ---

    def outline(self, directory: Directory, wait: bool) -> Outline:
        """How the directory is paged. Raises MustWait and the errors of reading."""
        outline = directory.outline
        if outline is None:
            outline = directory.outline = self._pages.outline(directory.tree, wait)
        return outline

    def rest_of_page(self, directory: Directory, position: int, wait: bool) -> tuple[list[Node], list[Owner]]:
        """The entries from `position` to the end of its page; none at the end of the directory."""
        outline = self.outline(directory, wait)
        if position >= outline.total:
            return [], []
        start, page = self._pages.page(outline, position, wait)
        return page.nodes[position - start :], page.owners

    def lookup(self, directory: Directory, name: bytes, hold: bool, wait: bool) -> tuple[int, Node, Owner] | None:
        """An entry by name with its inode, or None."""
        found = self._pages.find(self.outline(directory, wait), name, wait)
        if found is None:
            return None
        position, node, owner = found
        inode = self.inode(directory, position, node, owner)
        if hold:
            with self._lock:
                if inodes.is_link(inode):
                    self._links.hold(inode, Found(node, owner, directory))
                else:
                    self._directories.hold(directory.number, directory)
        return inode, node, owner

    def inode(self, directory: Directory, position: int, node: Node, owner: Owner) -> int:
        """An entry's number. Remembers what the number of a link stands for."""
        group = node.link_group
        if group is None or node.kind == NodeKind.DIRECTORY:
            if position >= inodes.POSITIONS:
                raise Stale  # 67 million entries: no file system that we read from has such directories
            return inodes.entry_inode(directory.number, position)
        inode = inodes.link_inode(directory.point, group)
        with self._lock:
            self._links.add(inode, Found(node, owner, directory))
        return inode
