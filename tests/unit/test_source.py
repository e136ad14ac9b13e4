"""Reading entries of a file system: holes, attributes, owners, exclusions, plans."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from cas.errors import InvalidRequest
from cas.source import posix
from cas.source.exclude import Excluder, is_cache_directory
from cas.source.plan import normalise_paths, plan_paths

KIB = 1024


def sparse(path: Path, size: int, parts: list[tuple[int, bytes]]) -> list[tuple[int, int]] | None:
    """Make a file with holes, and say what the source finds in it."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        extents = posix.data_extents(descriptor, os.fstat(descriptor))
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        if extents is not None:
            read = posix.ExtentReader(descriptor, extents)
            plain = path.read_bytes()
            buffer = bytearray(7777)
            found = b""
            while count := read(memoryview(buffer)):
                found += buffer[:count]
            assert found == b"".join(plain[offset : offset + length] for offset, length in extents)
            covered = bytearray(size)
            for offset, length in extents:
                covered[offset : offset + length] = plain[offset : offset + length]
            assert covered == plain
        return extents
    finally:
        os.close(descriptor)


def test_holes_are_found(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100 * KIB)
    assert sparse(tmp_path / "none", len(data), [(0, data)]) is None
    assert sparse(tmp_path / "empty", 0, []) is None
    assert sparse(tmp_path / "only", KIB * KIB, []) == []
    middle = sparse(tmp_path / "middle", 4 * KIB * KIB, [(0, data), (KIB * KIB, data)])
    assert middle is not None
    assert [offset for offset, _ in middle] == [0, KIB * KIB]
    end = sparse(tmp_path / "end", KIB * KIB, [(KIB * KIB - 10, b"0123456789")])
    assert end is not None
    assert len(end) == 1
    assert sum(end[0]) == KIB * KIB


def test_a_file_system_that_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.lseek

    def refusing(descriptor: int, position: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, position, how)

    monkeypatch.setattr(os, "lseek", refusing)
    assert sparse(tmp_path / "f", KIB * KIB, [(0, b"x")]) is None


def test_a_file_that_shrinks_under_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1000)
    descriptor = os.open(path, os.O_RDONLY)
    read = posix.ExtentReader(descriptor, [(0, 400), (600, 400)])
    os.truncate(path, 500)
    buffer = bytearray(300)
    found = b""
    while count := read(memoryview(buffer)):
        found += buffer[:count]
    os.close(descriptor)
    assert found == b"x" * 400 + bytes(400)


def test_attributes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    (tmp_path / "link").symlink_to("f")
    values = {b"user.a": b"1", b"user.empty": b"", b"user.bin": bytes(range(256))}
    for name, value in values.items():
        os.setxattr(path, name, value)
    directory = os.open(tmp_path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert posix.read_xattrs(descriptor) == values
        assert posix.read_xattrs(posix.path_below(directory, b"f")) == values
        assert posix.read_xattrs(posix.path_below(directory, b"link")) == {}  # not those of its target
    finally:
        os.close(descriptor)
        os.close(directory)


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EPERM, errno.ENODATA])
def test_attributes_that_cannot_be_had_are_none(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"")
    os.setxattr(tmp_path / "f", "user.a", b"1")

    def refuse(*_: object, **__: object) -> bytes:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "getxattr", refuse)
        assert posix.read_xattrs(os.fsencode(tmp_path / "f")) == {}
    monkeypatch.setattr(os, "listxattr", refuse)
    assert posix.read_xattrs(os.fsencode(tmp_path / "f")) == {}


def test_directories_are_listed_in_order_of_bytes(tmp_path: Path) -> None:
    for name in (b"b", b"a", b"\xff", b"a-", b"A", "\N{SNOWMAN}".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(b"")
    (tmp_path / "broken").symlink_to("nowhere")
    directory = os.open(tmp_path, os.O_RDONLY)
    found, failed = posix.list_directory(directory)
    os.close(directory)
    names = [name for name, _ in found]
    assert names == sorted(names)
    assert len(names) == 7
    assert failed == []


def test_links_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "to-dir").symlink_to("dir")
    (tmp_path / "to-file").symlink_to("file")
    directory = os.open(tmp_path, os.O_RDONLY)
    for call, name in (
        (posix.open_directory, b"to-dir"),
        (posix.open_file, b"to-file"),
        (posix.open_directory, b"file"),
    ):
        with pytest.raises(OSError):  # noqa: PT011 - ELOOP or ENOTDIR, by kernel
            call(name, directory)
    os.close(directory)


def test_owners_have_names_where_the_system_knows_them() -> None:
    owners = posix.Owners()
    root = owners(0, 0)
    assert (root.user, root.group) == (b"root", b"root")
    assert owners(0, 0) is root
    nobody = owners(4_000_000_001, 4_000_000_002)
    assert (nobody.uid, nobody.gid, nobody.user, nobody.group) == (4_000_000_001, 4_000_000_002, b"", b"")


def test_what_the_kernel_makes_up() -> None:
    devices = posix.pseudo_devices()
    assert os.stat("/proc").st_dev in devices
    assert os.stat(__file__).st_dev not in devices


# --- exclusions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patterns, path, directory, excluded",
    [
        (["*.o"], b"/a/b/c.o", False, True),
        (["*.o"], b"/a/b/c.obj", False, False),
        (["/a/*.o"], b"/a/b.o", False, True),
        (["/a/*.o"], b"/x/a/b.o", False, False),
        (["a/b"], b"/a/b", False, True),
        (["a/b"], b"/x/a/b", False, False),
        (["/a/**/z"], b"/a/b/c/z", False, True),
        (["cache/"], b"/home/cache", True, True),
        (["cache/"], b"/home/cache", False, False),
        (["*", "!*.txt"], b"/a.txt", False, False),
        (["\\!x"], b"/!x", False, True),
        (["# comment", ""], b"/# comment", False, False),
        (["*.\udcff"], b"/a.\xff", False, True),
        (["*"], b"/", True, False),
    ],
)
def test_patterns(patterns: list[str], path: bytes, directory: bool, excluded: bool) -> None:
    assert Excluder(patterns)(path, directory) is excluded


def test_a_pattern_that_does_not_parse_is_named() -> None:
    with pytest.raises(InvalidRequest, match="!"):
        Excluder(["fine", "!"])


def test_cache_tags() -> None:
    assert is_cache_directory(b"Signature: 8a477f597d28d172789f06886806bc55")
    assert not is_cache_directory(b"signature: 8a477f597d28d172789f06886806bc55")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_inside_others_and_links_on_the_way(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path.resolve())
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "to-a").symlink_to("a")
    given = [root + tail for tail in (b"/a/b", b"/a", b"/a//b/../", b"/to-a/b", b"/to-a", b"/ab")]
    assert normalise_paths(given) == [root + b"/a", root + b"/ab", root + b"/to-a"]
    assert normalise_paths([b"/", root]) == [b"/"]
    plan = plan_paths([b"/a/b", b"/c"])
    assert not plan.whole
    assert plan.below[b"a"].below[b"b"].whole
    assert plan.below[b"c"].whole
    assert plan_paths([b"/"]).whole
