"""Restore under attack, in damage, without space, and interrupted."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cas.errors import NoSpace, TargetUnusable, VaultUnavailable
from cas.events import Event, Progress
from cas.ids import ChunkId
from cas.model import Extra, HardLink, Node, NodeKind, Owner, TreePage
from cas.store.writer import Writer
from cas.tasks.requests import Conflict, RestoreRequest, RestoreResult
from cas.tasks.restore import restore
from tests.restoring import Lab, Made, below, leftovers, made_directory, made_link, picture, store_nodes, use_processes


@pytest.fixture(params=["threads", "processes"])
def lab(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    use_processes(monkeypatch, use=request.param == "processes")
    return Lab(tmp_path / "cache")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    return target


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What nobody may touch."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    return outside


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def warned(result: RestoreResult) -> list[bytes]:
    return sorted(warning.path for warning in result.warnings)


# --- hostile points and targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", list(Conflict))
def test_a_link_in_the_target_is_never_followed(lab: Lab, target: Path, outside: Path, conflict: Conflict) -> None:
    before = picture(outside)
    for name in ("directory", "file", "fifo", "link"):
        (target / name).symlink_to(outside)
    (target / "precious").symlink_to(outside / "precious")
    entries = {
        b"directory": made_directory({b"precious": Made(data=b"bad"), b"new": Made(data=b"bad")}),
        b"file": Made(data=b"bad"),
        b"fifo": Made(NodeKind.FIFO),
        b"link": made_link(b"elsewhere"),
        b"precious": Made(data=b"bad", mode=0o777),
    }
    result = restore(lab.repository, lab.made(entries), RestoreRequest(target=target, conflict=conflict))
    assert result.warnings == []
    assert picture(outside) == before


@pytest.mark.parametrize("conflict", list(Conflict))
@pytest.mark.parametrize("paged", [False, True])
def test_a_name_that_is_first_a_link_and_then_a_directory(
    lab: Lab, target: Path, outside: Path, conflict: Conflict, paged: bool
) -> None:
    """In one page the listing is refused; over two pages the second entry meets what the first one made."""
    before = picture(outside)
    link = (b"x", made_link(os.fsencode(outside)))
    directory = (b"x", made_directory({b"precious": Made(data=b"bad")}))
    last = (b"y", Made(data=b"good"))

    def write(writer: Writer) -> ChunkId:
        if not paged:
            inner = store_nodes(writer, [link, directory, last])
        else:
            pages = [
                TreePage(b"x", 1, store_nodes(writer, [link])),
                TreePage(b"y", 2, store_nodes(writer, [directory, last])),
            ]
            inner = writer.meta(b"\x01" + msgspec.msgpack.encode(pages))
        node = Node(b"d", NodeKind.DIRECTORY, 0o755, 0, 0, 0, 0, 0, inner)
        return writer.meta(b"\0" + msgspec.msgpack.encode(([Owner(os.getuid(), os.getgid())], [node])))

    for _ in range(2):
        result = restore(lab.repository, lab.store(write), RestoreRequest(target=target, conflict=conflict))
        assert picture(outside) == before
        if not paged:
            assert warned(result) == [os.fsencode(target / "d")]


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"../outside/precious", b"a\0b"])
def test_names_that_lead_elsewhere(lab: Lab, target: Path, outside: Path, name: bytes) -> None:
    before = picture(outside)
    point = lab.made(
        {b"d": made_directory({name: Made(data=b"bad")}), b"e": made_directory({b"x": Made(data=b"good")})}
    )
    result = restore(lab.repository, point, RestoreRequest(target=target))
    assert warned(result) == [os.fsencode(target / "d")]
    assert picture(outside) == before
    assert (target / "e" / "x").read_bytes() == b"good"


def test_a_directory_swapped_for_a_link_meanwhile(
    lab: Lab, target: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = picture(outside)
    mkdir = os.mkdir

    def swapped(path: bytes, mode: int, *, dir_fd: int | None = None) -> None:
        mkdir(path, mode, dir_fd=dir_fd)
        if path == b"d":
            os.rmdir(path, dir_fd=dir_fd)
            os.symlink(outside, path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    point = lab.made({b"d": made_directory({b"precious": Made(data=b"bad")}), b"f": Made(data=b"good")})
    result = restore(lab.repository, point, RestoreRequest(target=target))
    assert warned(result) == [os.fsencode(target / "d")]
    assert picture(outside) == before
    assert (target / "f").read_bytes() == b"good"


# --- damage ---------------------------------------------------------------------------------------------------------


def test_damaged_data_costs_the_files_that_lie_in_it(lab: Lab, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a large one").write_bytes(os.urandom(12 << 20))
    (source / "empty").touch()
    (source / "linked").write_bytes(os.urandom(30_000))
    os.link(source / "linked", source / "linked too")
    (source / "small").write_bytes(b"small")
    (source / "link").symlink_to("small")
    point = lab.protect(source)
    lab.damage("data")
    result = restore(lab.repository, point, RestoreRequest(target=target))
    there = below(target, source)
    assert all("damaged" in warning.reason for warning in result.warnings)
    left = set(os.listdir(there))
    assert left >= {"empty", "link"}
    assert left | {os.fsdecode(path).rsplit("/", 1)[-1] for path in warned(result)} == set(os.listdir(source))
    for name in left:
        assert picture(there)[b"/" + os.fsencode(name)][6] == picture(source)[b"/" + os.fsencode(name)][6]
    assert result.warnings
    assert leftovers(target) == []


def test_chunks_that_are_missing_or_of_another_length(lab: Lab, target: Path) -> None:
    def write(writer: Writer) -> ChunkId:
        known = writer.chunk(b"four")
        lost = Node(b"lost", NodeKind.FILE, 0o644, 0, 9, 0, 0, 1, bytes(32))
        longer = Node(b"longer", NodeKind.FILE, 0o644, 0, 9, 0, 0, 1, known)
        list_lost = Node(
            b"list lost", NodeKind.FILE, 0o644, 0, 9 << 20, 0, 0, 1, bytes(32) + (9 << 20).to_bytes(8, "little"), 1
        )
        odd = Node(b"odd", NodeKind.FILE, 0o644, 0, 9, 0, 0, 1, b"odd")
        right = Node(b"right", NodeKind.FILE, 0o644, 0, 4, 0, 0, 1, known)
        link = Extra(link=HardLink(1, 2))
        names = [Node(name, NodeKind.FILE, 0o644, 0, 9, 0, 0, 7, bytes(32), 0, link) for name in (b"n1", b"n2")]
        nodes = [list_lost, longer, lost, *names, odd, right]
        return writer.meta(b"\0" + msgspec.msgpack.encode(([Owner(os.getuid(), os.getgid())], nodes)))

    result = restore(lab.repository, lab.store(write), RestoreRequest(target=target))
    assert warned(result) == [os.fsencode(target / name) for name in ("list lost", "longer", "lost", "n1", "n2", "odd")]
    assert os.listdir(target) == ["right"]


def test_a_damaged_directory_costs_what_is_in_it(lab: Lab, target: Path) -> None:
    def write(writer: Writer) -> ChunkId:
        broken = writer.meta(b"\0broken")
        nodes = [Node(b"d", NodeKind.DIRECTORY, 0o700, 0, 0, 5, 0, 1, broken)]
        nodes.append(Node(b"f", NodeKind.FILE, 0o644, 0, 1, 0, 0, 1, writer.chunk(b"x")))
        return writer.meta(b"\0" + msgspec.msgpack.encode(([Owner(os.getuid(), os.getgid())], nodes)))

    result = restore(lab.repository, lab.store(write), RestoreRequest(target=target))
    assert warned(result) == [os.fsencode(target / "d")]
    assert (target / "d").stat().st_mtime_ns == 5
    assert (target / "f").read_bytes() == b"x"


def test_an_unreachable_vault_ends_the_run(lab: Lab, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = lab.made({b"d": made_directory({b"%d" % number: Made(data=b"%d" % number) for number in range(500)})})
    lab.repository.reader().lookup(point.root, b"d")
    get = lab.vault.get

    def gone(name: str, offset: int = 0, length: int | None = None) -> bytes:
        if "/data/" in name:
            raise VaultUnavailable("memory://", "It is gone.")
        return get(name, offset, length)

    monkeypatch.setattr(lab.vault, "get", gone)
    with pytest.raises(VaultUnavailable):
        restore(lab.repository, point, RestoreRequest(target=target))
    assert leftovers(target) == []


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("large", [False, True])
def test_no_space(lab: Lab, small_disk: Path, large: bool) -> None:
    if large:
        point = lab.protect(_source(small_disk.parent, 1, 12 << 20))
    else:
        files = {b"%d" % number: Made(data=os.urandom(10_000)) for number in range(1000)}
        point = lab.made({b"d": made_directory(files)})
    with pytest.raises(NoSpace) as caught:
        restore(lab.repository, point, RestoreRequest(target=small_disk / "target"))
    assert caught.value.where == "restore target"
    assert leftovers(small_disk) == []


def _source(place: Path, files: int, size: int) -> Path:
    source = place / "source"
    source.mkdir()
    for number in range(files):
        (source / f"{number:04}").write_bytes(os.urandom(size))
    return source


@pytest.mark.root
def test_a_read_only_target(lab: Lab, small_disk: Path) -> None:
    (small_disk / "sub").mkdir()
    point = lab.made({b"sub": made_directory({b"f": Made(data=b"x")})})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for place in (small_disk, small_disk / "new"):
        with pytest.raises(TargetUnusable):
            restore(lab.repository, point, RestoreRequest(target=place))


def test_a_target_that_is_no_directory(lab: Lab, target: Path) -> None:
    (target / "file").touch()
    for place in (target / "file", target / "file" / "below"):
        with pytest.raises(TargetUnusable):
            restore(lab.repository, lab.made({b"f": Made()}), RestoreRequest(target=place))


def test_a_copy_of_a_long_name_is_cut_to_fit(lab: Lab, target: Path) -> None:
    long = b"n" * 250
    (target / os.fsdecode(long)).write_text("mine")
    result = restore(
        lab.repository, lab.made({long: Made(data=b"x"), b"ok": Made(data=b"x")}), RestoreRequest(target=target)
    )
    assert not result.warnings
    assert result.renamed == 1
    copies = [name for name in os.listdir(target) if "Copy of" in name]
    assert [(len(name), (target / name).read_text()) for name in copies] == [(255, "x")]


@pytest.mark.root
def test_own_directories_that_are_closed_are_opened_for_a_while(lab: Lab) -> None:
    inside = {name: made_directory({b"new": Made(data=b"x")}, mode=0o555) for name in (b"closed", b"shut", b"fresh")}
    point = lab.made({b"d": made_directory(inside)})
    with tempfile.TemporaryDirectory() as place:
        top = Path(place, "d")
        for name, mode in (("closed", 0o500), ("shut", 0o000)):
            (top / name).mkdir(parents=True)
            os.chown(top / name, 4444, 4444)
            (top / name).chmod(mode)
        for directory in (top, Path(place)):
            os.chown(directory, 4444, 4444)
        os.setegid(4444)
        os.seteuid(4444)
        try:
            result = restore(lab.repository, point, RestoreRequest(items=[b"/d"], target=Path(place)))
        finally:
            os.seteuid(0)
            os.setegid(0)
        modes = {name: (top / name).stat().st_mode & 0o777 for name in os.listdir(top)}
        assert modes == {"closed": 0o500, "shut": 0o000, "fresh": 0o555}
        assert result.files == 3


def test_depth_is_not_bounded_by_open_files(lab: Lab, target: Path) -> None:
    made = Made(data=b"deep")
    extra = Extra(link=HardLink(1, 2))
    other = Made(data=b"two names", extra=extra, inode=9)
    for level in range(400):
        more = {b"z": other} if level == 399 else {b"f": other} if not level else {}
        made = made_directory({b"d" if level else b"x": made, **more}, mode=0o750)
    point = lab.made({b"top": made})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        for _ in range(2):
            result = restore(lab.repository, point, RestoreRequest(target=target, conflict=Conflict.OVERWRITE))
            assert result.warnings == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    bottom = target / "top" / "/".join(["d"] * 399)
    assert (bottom / "x").read_bytes() == b"deep"
    assert (bottom / "f").stat().st_ino == (target / "top" / "z").stat().st_ino
    assert bottom.stat().st_mode & 0o777 == 0o750
    assert bottom.stat().st_mtime_ns == made.mtime


# --- Ctrl-C ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20_000, 12 << 20])
def test_ctrl_c(lab: Lab, tmp_path: Path, target: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(tmp_path, 1500 if size < 1 << 20 else 3, size)
    source.chmod(0o750)
    point = lab.protect(source)
    get = lab.vault.get

    def slow(name: str, offset: int = 0, length: int | None = None) -> bytes:
        time.sleep(0.05)
        return get(name, offset, length)

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.current:
            raise KeyboardInterrupt

    monkeypatch.setattr(lab.vault, "get", slow)
    with pytest.raises(KeyboardInterrupt):
        restore(lab.repository, point, RestoreRequest(target=target), listen)
    monkeypatch.undo()
    there = below(target, source)
    assert leftovers(target) == []
    assert there.stat().st_mode & 0o777 == 0o750
    done = picture(there)
    expected = picture(source)
    assert len(done) < len(expected)
    assert all(done[name] == expected[name] for name in done)
    result = restore(lab.repository, point, RestoreRequest(target=target, conflict=Conflict.OVERWRITE))
    assert result.unchanged == len(done) - 1
    assert picture(there) == expected
