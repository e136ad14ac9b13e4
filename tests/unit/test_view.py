"""The drive's pure view: names, numbers, attributes, bytes, and what each of them costs."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from cas.errors import CacheUnusable, ChunkMissing, VaultMissing
from cas.ids import ChunkId, MachineId, PointId
from cas.model import Extra, HardLink, Node, NodeKind, Owner, Point, PointStats, Stream, WindowsExtra
from cas.repository import Repository
from cas.store.reader import Reader
from cas.store.trees import write_tree
from cas.store.writer import Writer
from cas.vault.memory import MemoryVault
from mount import inodes
from mount.inodes import ROOT, Table
from mount.timeline import REFRESH_SECONDS, Timeline, folder_name
from mount.view import MustWait, Stale, View, WrongKind
from tests.engine import cheap_keys, make_world
from tests.faults import CountingVault, Fault, FaultyVault

_NOON = 1_795_348_800_000_000_000  # 2026-11-22T12:00:00Z
_FILE = NodeKind.FILE


def _bytes(count: int, seed: int = 1) -> bytes:
    """Bytes that do not repeat soon."""
    state = seed
    words = []
    for _ in range(count // 4 + 1):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(state.to_bytes(4, "little"))
    return b"".join(words)[:count]


@dataclass
class Shelf:
    """A repository in memory, with what is needed to put points into it."""

    vault: CountingVault
    repository: Repository
    writer: Writer
    points: list[Point] = field(default_factory=list)
    finished: bool = False

    def file(self, name: bytes, data: bytes, **more: object) -> Node:
        position = 0

        def readinto(view: memoryview) -> int:
            nonlocal position
            part = data[position : position + len(view)]
            view[: len(part)] = part
            position += len(part)
            return len(part)

        content, depth, size = self.writer.file(readinto, len(data))
        return _node(name, _FILE, content=content, depth=depth, **{"size": size, **more})

    def folder(self, name: bytes, nodes: Sequence[Node], **more: object) -> Node:
        return _node(name, NodeKind.DIRECTORY, content=self.tree(nodes), mode=0o755, **more)

    def tree(self, nodes: Sequence[Node]) -> ChunkId:
        owners = [Owner(0, 0), Owner(1000, 100, b"ann", b"users")]
        return write_tree(self.writer.meta, owners, sorted(nodes, key=lambda node: node.name))

    def point(self, nodes: Sequence[Node], *, machine: str = "box", started: int = _NOON, offset: int = 0) -> Point:
        """A point of these nodes, durable."""
        number = len(self.points) + 1
        point = Point(
            id=PointId(f"{number:032x}"),
            machine_id=MachineId("a" * 32),
            machine=machine,
            started=started,
            finished=started,
            paths=[b"/"],
            root=self.tree(nodes),
            stats=PointStats(files=3, directories=1, size=12345),
            utc_offset=offset,
        )
        self.points.append(point)
        return point

    def reader(self, cache_bytes: int = 64 << 20) -> Reader:
        """After the last point: a reader that has nothing at hand; the counts of the vault start again."""
        if not self.finished:
            self.finished = True
            self.writer.finish()
        self.vault.reset()
        return self.repository.reader(cache_bytes)


def _node(name: bytes, kind: NodeKind = _FILE, **more: object) -> Node:
    values: dict[str, object] = {
        "mode": 0o640,
        "owner": 1,
        "size": 0,
        "mtime": 1_600_000_000_123_456_789,
        "ctime": 1_600_000_001_000_000_001,
        "inode": 7,
        "content": b"",
    }
    return msgspec.structs.replace(Node(name, kind, 0, 0, 0, 0, 0, 0, b""), **{**values, **more})


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    yield from _shelf(tmp_path, MemoryVault())


def _shelf(cache: Path, memory: MemoryVault) -> Iterator[Shelf]:
    with pytest.MonkeyPatch.context() as patch:
        cheap_keys(patch)
        vault = CountingVault(memory)
        world = make_world(vault, cache)
    with world.open() as repository, repository.writer() as writer:
        yield Shelf(vault, repository, writer)


def _walk(view: View, *names: bytes) -> int:
    inode = ROOT
    for name in names:
        found = view.lookup(inode, name)
        assert found is not None, name
        inode = found.inode
    return inode


def _list(view: View, inode: int) -> list[tuple[bytes, int]]:
    handle = view.open_directory(inode)
    found: list[tuple[bytes, int]] = []
    cookie = 0
    while batch := list(view.entries(handle, cookie)):
        found += [(entry.name, entry.attributes.inode) for entry in batch]
        cookie = batch[-1].cookie
    view.close_directory(handle)
    return found


# --- names and attributes -------------------------------------------------------------------------------------------


def test_every_kind_has_the_attributes_of_its_node(shelf: Shelf) -> None:
    sparse = shelf.file(b"sparse", b"x" * 600, size=5000, extra=Extra(extents=[(0, 100), (2000, 500)]))
    nodes = [
        shelf.file(b"file", b"hello", extra=Extra(xattrs={b"user.a": b"1"}, birth=99)),
        sparse,
        shelf.folder(b"dir", [_node(b"inner")]),
        _node(b"link", NodeKind.SYMLINK, content=b"../away", size=7),
        _node(b"disk", NodeKind.BLOCK_DEVICE, extra=Extra(device=(8, 1))),
        _node(b"pipe", NodeKind.FIFO),
        _node(b"sock", NodeKind.SOCKET),
        _node(b"\xff\xfebad", mode=0o4755),
    ]
    point = shelf.point(nodes)
    view = View(shelf.reader(), point)
    found = view.lookup(ROOT, b"file")
    assert found is not None
    assert (found.mode, found.uid, found.gid, found.size, found.links) == (stat.S_IFREG | 0o640, 1000, 100, 5, 1)
    assert (found.mtime, found.ctime, found.birth) == (1_600_000_000_123_456_789, 1_600_000_001_000_000_001, 99)
    assert found == view.attributes(found.inode) and found.lasting and view.attributes(ROOT).lasting
    assert dict(view.xattrs(found.inode)) == {b"user.a": b"1"}
    assert view.attributes(_walk(view, b"sparse")).allocated == 600
    assert view.attributes(_walk(view, b"dir", b"inner")).mode == stat.S_IFREG | 0o640
    assert view.readlink(_walk(view, b"link")) == b"../away"
    assert view.attributes(_walk(view, b"disk")).device == (8, 1)
    assert stat.S_ISFIFO(view.attributes(_walk(view, b"pipe")).mode)
    assert stat.S_ISSOCK(view.attributes(_walk(view, b"sock")).mode)
    assert view.attributes(_walk(view, b"\xff\xfebad")).mode == stat.S_IFREG | 0o4755
    assert view.lookup(ROOT, b"missing") is None
    assert stat.S_ISDIR(view.attributes(ROOT).mode)
    assert view.usage() == (12345, 4)
    assert view.path(_walk(view, b"dir", b"inner")) == b"/dir/inner"
    view.close()


def test_calls_for_another_kind_are_told_so(shelf: Shelf) -> None:
    point = shelf.point([shelf.file(b"file", b"x"), shelf.folder(b"dir", [])])
    view = View(shelf.reader(), point)
    file, folder = _walk(view, b"file"), _walk(view, b"dir")
    for call in (view.open, view.readlink):
        with pytest.raises(WrongKind):
            call(folder)
        with pytest.raises(WrongKind):
            call(ROOT)
    with pytest.raises(WrongKind):
        view.open_directory(file)
    with pytest.raises(WrongKind):
        view.lookup(file, b"x")
    with pytest.raises(Stale):
        view.attributes(12345)
    with pytest.raises(Stale):
        view.attributes(inodes.entry_inode(12345, 1))
    assert _list(view, folder) == []
    view.close()


def test_names_of_one_file_share_a_number_and_other_points_do_not(shelf: Shelf) -> None:
    link = Extra(link=HardLink(device=3, count=3))
    twins = [shelf.file(b"one", b"data", inode=42, extra=link)]
    twins.append(msgspec.structs.replace(twins[0], name=b"two"))
    other = shelf.file(b"other", b"data", inode=43, extra=link)
    points = [shelf.point([*twins, shelf.folder(b"sub", [twins[0]]), other]), shelf.point(twins, started=_NOON + 10**9)]
    view = View(shelf.reader(), Timeline(lambda: points))
    first, second = (_walk(view, b"box", name) for name in (b"2026-11-22 12.00.00", b"2026-11-22 12.00.01"))
    assert view.lookup(first, b"one") == view.lookup(first, b"two")
    listed = dict(_list(view, first))
    assert listed[b"one"] == listed[b"two"] != listed[b"other"]
    assert dict(_list(view, _walk(view, b"box", b"2026-11-22 12.00.00", b"sub")))[b"one"] == listed[b"one"]
    assert view.attributes(listed[b"one"]).links == 3
    assert dict(_list(view, second))[b"one"] != listed[b"one"]
    assert bytes(view.open(listed[b"two"]).read(0, 10)) == b"data"
    view.close()


def test_windows_extras_and_streams(shelf: Shelf) -> None:
    side = shelf.file(b"side", b"zone" * 100)
    windows = WindowsExtra(attributes=0x21, streams=[Stream(b"Zone", side.size, side.content, side.depth)])
    point = shelf.point([shelf.file(b"file", b"main", extra=Extra(windows=windows))])
    view = View(shelf.reader(), point)
    file = _walk(view, b"file")
    assert view.windows(file) == windows
    assert bytes(view.open(file, b"Zone").read(0, 1000)) == b"zone" * 100
    with pytest.raises(WrongKind):
        view.open(file, b"Other")
    assert view.windows(ROOT) is None
    view.close()


# --- listing --------------------------------------------------------------------------------------------------------


def test_a_large_directory_is_listed_in_pages_and_looked_up_in_one(shelf: Shelf) -> None:
    names = [b"%06d" % number for number in range(20_000)]
    point = shelf.point([_node(name) for name in names])
    view = View(shelf.reader(), point)
    listed = _list(view, ROOT)
    assert [name for name, _ in listed] == names
    assert len({inode for _, inode in listed}) == len(names)
    for position in (0, 4095, 4096, 4097, 12_345, 19_999):
        found = view.lookup(ROOT, names[position])
        assert found is not None and found.inode == listed[position][1]
        assert view.attributes(found.inode) == found
    handle = view.open_directory(ROOT)
    for cookie in (1, 4096, 9_999, 19_999):
        entry = next(view.entries(handle, cookie))
        assert (entry.name, entry.cookie) == (names[cookie], cookie + 1)
    assert list(view.entries(handle, 20_000)) == []
    assert view.lookup(ROOT, b"") is None and view.lookup(ROOT, b"zzz") is None
    view.close()

    fresh = View(shelf.reader(), point)
    assert fresh.lookup(ROOT, b"012345") is not None
    reads = shelf.vault.count("get")
    assert reads <= 3  # the list of pages, its first page to see that it is one, and the page of the name
    fresh.close()


def test_forgotten_directories_leave_memory_and_keep_their_numbers(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.nodes._IDLE", 8)
    folders = [shelf.folder(b"d%03d" % number, [_node(b"file")]) for number in range(100)]
    point = shelf.point(folders)
    view = View(shelf.reader(), point)
    numbers = {}
    for name, inode in _list(view, ROOT):
        view.hold(inode)
        found = view.lookup(inode, b"file", hold=True)
        assert found is not None
        numbers[name] = (inode, found.inode)
    assert view.remembered >= 100
    assert view.attributes(numbers[b"d000"][1]).size == 0  # the kernel knows it, so it is still there
    for inode, file in numbers.values():
        view.release(file, 1)
        view.release(inode, 1)
    assert view.remembered <= 16
    with pytest.raises(Stale):
        view.attributes(numbers[b"d000"][1])
    assert [(inode, _walk(view, name, b"file")) for name, (inode, _) in numbers.items()] == list(numbers.values())
    view.close()


def test_a_table_keeps_what_is_held_and_the_latest_of_the_rest() -> None:
    table: Table[str] = Table(2)
    table.hold(1, "one", 2)
    for number in range(2, 6):
        table.add(number, str(number))
    assert (table.get(1), table.get(3), table.get(5), len(table)) == ("one", None, "5", 3)
    table.release(1)
    assert table.get(1) == "one"
    table.release(1)
    table.release(1)  # more than was ever told: ignored
    table.add(6, "6")
    table.add(7, "7")
    assert table.get(1) is None


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shelf, View, bytes, bytes]]:
    """A long file and a sparse one, with their bytes."""
    for shelf in _shelf(tmp_path_factory.mktemp("cache"), MemoryVault()):
        data = _bytes(900_000)
        extents = [(1000, 5000), (6000, 70), (200_000, 100_000), (899_990, 5)]
        holes = bytearray(900_000)
        for offset, length in extents:
            holes[offset : offset + length] = data[offset : offset + length]
        parts = b"".join(data[offset : offset + length] for offset, length in extents)
        nodes = [
            shelf.file(b"long", data),
            shelf.file(b"sparse", parts, size=len(holes), extra=Extra(extents=extents)),
            shelf.file(b"empty", b""),
        ]
        assert nodes[0].depth > 0
        point = shelf.point(nodes)
        view = View(shelf.reader(), point)
        yield shelf, view, data, bytes(holes)
        view.close()


@given(offset=some.integers(0, 901_000), size=some.integers(0, 300_000))
def test_any_range_of_a_file(reading: tuple[Shelf, View, bytes, bytes], offset: int, size: int) -> None:
    _, view, data, holes = reading
    for name, expected in ((b"long", data), (b"sparse", holes), (b"empty", b"")):
        file = view.open(_walk(view, name))
        assert bytes(file.read(offset, size)) == expected[offset : offset + size]


def test_what_is_not_at_hand_is_not_waited_for(shelf: Shelf) -> None:
    point = shelf.point([shelf.folder(b"dir", [shelf.file(b"file", _bytes(100_000))])])
    view = View(shelf.reader(), point)

    def twice(call: Callable[..., object], *arguments: object) -> None:
        """First it must wait; then, once it has waited, it need not any more."""
        before = shelf.vault.count()
        with pytest.raises(MustWait):
            call(*arguments, wait=False)
        assert shelf.vault.count() == before
        answer = call(*arguments)
        before = shelf.vault.count()
        assert call(*arguments, wait=False) == answer
        assert shelf.vault.count() == before

    twice(view.lookup, ROOT, b"dir")
    file = view.open(_walk(view, b"dir", b"file"))
    twice(file.read, 0, 2000)
    view.close()


def test_random_reads_open_only_their_block_and_sequential_ones_the_next_too(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mount.ahead._FIRST_WINDOW", 64 << 10)
    monkeypatch.setattr("mount.ahead._WINDOW_LEAST", 8 << 10)
    monkeypatch.setattr("mount.files._SMALL", 64 << 10)
    data = _bytes(600_000)
    point = shelf.point([shelf.file(b"file", data)])
    view = View(shelf.reader(), point)
    file = view.open(_walk(view, b"file"))
    file.read(0, 1)
    before = shelf.vault.count("get")
    for offset in (500_000, 100_000, 300_000, 50_000):
        file.read(offset, 10)
    assert shelf.vault.count("get") <= before + 4

    file = view.open(_walk(view, b"file"))
    for offset in range(400_000, 440_000, 4000):
        assert bytes(file.read(offset, 4000)) == data[offset : offset + 4000]
    deadline = time.monotonic() + 30
    ahead: bytes | memoryview = b""
    while not ahead:
        try:
            ahead = file.read(440_000, 30_000, wait=False)  # never fetches anything itself
        except MustWait:
            assert time.monotonic() < deadline, "nothing was read ahead"
            time.sleep(0.01)
    assert bytes(ahead) == data[440_000:470_000]
    view.close()


def test_files_are_read_by_number_without_opening_them(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mount.files._OPEN_FILES", 4)
    datas = [_bytes(3000, seed) for seed in range(12)]
    nodes = [shelf.file(b"%02d" % number, data) for number, data in enumerate(datas)]
    point = shelf.point([*nodes, shelf.folder(b"dir", [])])
    view = View(shelf.reader(), point)
    inodes_ = [_walk(view, b"%02d" % number) for number in range(12)]
    for _ in range(2):
        for inode, data in zip(inodes_, datas, strict=True):
            assert view.read(inode, 100, 5000) == data[100:]
            assert view.read(inode, 0, 10, wait=False) == data[:10]
            assert view.read(inode, 3000, 10) == b""
    for wrong in (_walk(view, b"dir"), ROOT):
        with pytest.raises(WrongKind):
            view.read(wrong, 0, 10)
    with pytest.raises(Stale):
        view.read(inodes.entry_inode(12345, 1), 0, 10)
    view.close()


def test_a_number_that_went_to_another_directory_never_gives_the_old_bytes(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are hashes: two directories may come to the same one, where the first is forgotten."""
    monkeypatch.setattr("mount.nodes._IDLE", 1)
    monkeypatch.setattr("mount.inodes.directory_number", lambda point, inode: 77)
    folders = [shelf.folder(name, [shelf.file(b"file", name * 500)]) for name in (b"one", b"two")]
    point = shelf.point(folders)
    view = View(shelf.reader(), point)
    one = _walk(view, b"one", b"file")
    assert view.read(one, 0, 3) == b"one"
    for _ in range(3):  # until the number has gone over
        two = _walk(view, b"two", b"file")
        assert view.read(two, 0, 3) == b"two"
    view.close()


def test_decoded_directories_are_bounded(shelf: Shelf) -> None:
    folders = [shelf.folder(b"%03d" % n, [_node(b"%03d-%03d" % (n, m)) for m in range(300)]) for n in range(100)]
    point = shelf.point(folders)
    view = View(shelf.reader(1 << 20), point)
    pages = view._nodes._pages
    for name, inode in _list(view, ROOT):
        assert [entry for entry, _ in _list(view, inode)] == [name + b"-%03d" % m for m in range(300)]
        assert pages.size <= 4 << 20
    assert pages.size > 3 << 20
    view.close()


def test_an_open_file_survives_an_index_made_anew(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _bytes(100_000)
    point = shelf.point([shelf.file(b"file", data)])
    view = View(shelf.reader(), point)
    file = view.open(_walk(view, b"file"))
    assert bytes(file.read(0, 100)) == data[:100]
    block = Reader.block
    faults = [CacheUnusable("The index cache contradicts itself.")]

    def once(reader: Reader, pack: int, number: int) -> memoryview:
        if faults:
            raise faults.pop()
        return block(reader, pack, number)

    monkeypatch.setattr(Reader, "block", once)
    assert bytes(file.read(90_000, 100)) == data[90_000:90_100]
    view.close()


def test_a_chunk_that_no_index_knows_is_an_error_of_its_file_only(shelf: Shelf) -> None:
    lost = _node(b"lost", content=bytes(32), size=100)
    point = shelf.point([lost, shelf.file(b"there", b"here")])
    view = View(shelf.reader(), point)
    with pytest.raises(ChunkMissing):
        view.open(_walk(view, b"lost")).read(0, 10)
    assert bytes(view.open(_walk(view, b"there")).read(0, 10)) == b"here"
    view.close()


# --- all points -----------------------------------------------------------------------------------------------------


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_points_are_named_by_their_local_time(shelf: Shelf) -> None:
    points = [
        shelf.point([_node(b"old")], offset=3600),
        shelf.point([_node(b"new")], started=_NOON + 5, offset=3600),
        shelf.point([_node(b"newest")], started=_NOON + 60 * 10**9, offset=-3600),
        shelf.point([], machine="../x"),
    ]
    view = View(shelf.reader(), Timeline(lambda: points), owner=(5, 6))
    assert [name for name, _ in _list(view, ROOT)] == [b".._x", b"box"]
    names = [b"2026-11-22 11.01.00", b"2026-11-22 13.00.00", b"2026-11-22 13.00.00 (2)", b"latest"]
    assert [name for name, _ in _list(view, _walk(view, b"box"))] == names
    assert view.readlink(_walk(view, b"box", b"latest")) == names[0]  # by when it was taken, not by its name
    assert [name for name, _ in _list(view, _walk(view, b"box", names[2]))] == [b"new"]
    machine = view.attributes(_walk(view, b"box"))
    assert (machine.uid, machine.gid, machine.lasting) == (5, 6, False)
    assert not view.attributes(_walk(view, b"box", names[0])).lasting
    file = _walk(view, b"box", names[2], b"new")
    assert view.path(file) == b"/box/2026-11-22 13.00.00 (2)/new"
    handle = view.open_directory(_walk(view, b"box", names[2]))
    assert handle.parent_inode == _walk(view, b"box")
    with pytest.raises(WrongKind):
        view.open_directory(_walk(view, b"box", b"latest"))
    assert view.usage().size == 2 * 12345
    view.close()


def test_new_points_appear_and_removed_ones_stay_usable(shelf: Shelf) -> None:
    clock = _Clock()
    points = [shelf.point([shelf.file(b"a", b"first")])]
    later = shelf.point([], started=_NOON + 10**9)
    asked = 0

    def ask() -> list[Point]:
        nonlocal asked
        asked += 1
        return list(points)

    view = View(shelf.reader(), Timeline(ask, clock))
    machine = _walk(view, b"box")
    old = _walk(view, b"box", b"2026-11-22 12.00.00")
    file = view.open(_walk(view, b"box", b"2026-11-22 12.00.00", b"a"))
    points.append(later)
    _list(view, ROOT)
    assert asked == 1 and len(_list(view, machine)) == 2

    clock.now += REFRESH_SECONDS
    with pytest.raises(MustWait):
        view.lookup(machine, b"latest", wait=False)
    assert len(_list(view, machine)) == 3 and asked == 2
    assert view.lookup(machine, b"latest", wait=False) is not None
    assert view.readlink(_walk(view, b"box", b"latest")) == b"2026-11-22 12.00.01"

    del points[0]
    clock.now += REFRESH_SECONDS
    assert [name for name, _ in _list(view, machine)] == [b"2026-11-22 12.00.01", b"latest"]
    assert bytes(file.read(0, 10)) == b"first"
    assert view.lookup(old, b"a") is not None
    view.close()


def test_a_point_keeps_its_name_when_its_twin_goes(shelf: Shelf) -> None:
    clock = _Clock()
    points = [shelf.point([]), shelf.point([])]
    timeline = Timeline(lambda: list(points), clock)
    view = View(shelf.reader(), timeline)
    twin = _walk(view, b"box", b"2026-11-22 12.00.00 (2)")
    del points[0]
    clock.now += REFRESH_SECONDS
    assert _list(view, _walk(view, b"box"))[0] == (b"2026-11-22 12.00.00 (2)", twin)
    assert view.lookup(_walk(view, b"box"), b"2026-11-22 12.00.00") is None
    view.close()


def test_a_vault_that_is_away_changes_no_listing(shelf: Shelf) -> None:
    clock = _Clock()
    point = shelf.point([])
    away = FaultyVault(shelf.vault, [Fault(at=2, error=VaultMissing("file:///v"), ops={"list"})])

    def ask() -> list[Point]:
        list(away.list(""))
        return [point]

    timeline = Timeline(ask, clock)
    view = View(shelf.reader(), timeline)
    for expected in (True, False):
        clock.now += REFRESH_SECONDS
        assert len(_list(view, _walk(view, b"box"))) == 2
        assert isinstance(timeline.problem, VaultMissing) == expected
    view.close()


def test_folder_names_follow_the_offset_of_the_point(shelf: Shelf) -> None:
    assert folder_name(shelf.point([], offset=5 * 3600 + 1800)) == b"2026-11-22 17.30.00"
    assert folder_name(shelf.point([], offset=-13 * 3600)) == b"2026-11-21 23.00.00"
