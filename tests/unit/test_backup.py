"""What a backup reads, keeps and sends: incremental runs, changes while it reads, and what it leaves out."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cas.errors import SourceUnreadable
from cas.model import Node, Point
from cas.source import posix
from cas.store.parameters import Parameters
from cas.tasks.check import check
from cas.tasks.requests import BackupResult
from cas.vault.memory import MemoryVault
from tests.engine import World, cheap_keys, files_of, files_on_disk, make_world, read_point, write_files

READ = random.Random(3).randbytes
WAY = 2000  # bytes of the trees on the way to the source: other programs change the attributes of /tmp at any time


def later() -> int:
    """A clock that is ahead, so that what a test has just written counts as written well before the run."""
    return time.time_ns() + 10**9


def run(world: World, *paths: Path, **options: Any) -> BackupResult:
    return world.backup(*paths, now=later, **options)


def nodes(world: World, point: Point | None) -> dict[bytes, Node]:
    assert point is not None
    with world.open() as repository:
        return {path: entry.node for path, entry in read_point(repository.reader(), point).items()}


def assert_reads_back(world: World, result: BackupResult, source: Path) -> None:
    assert result.point is not None
    with world.open() as repository:
        assert files_of(repository.reader(), result.point) == files_on_disk(source)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of all regular files that anything opens through a directory descriptor, as the walk does."""
    found: list[bytes] = []
    real = os.open

    def counting(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = real(path, flags, mode, dir_fd=dir_fd)
        if dir_fd is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
            found.append(path)
        return descriptor

    monkeypatch.setattr(os, "open", counting)
    return found


# --- incremental ------------------------------------------------------------------------------------------------------


def test_an_unchanged_tree_is_not_opened(world: World, source: Path, opened: list[bytes]) -> None:
    write_files(source, {f"{i % 7}/{i}": READ(i * 37) for i in range(300)})
    first = run(world, source)
    assert first.point is not None
    assert first.stats["opened"] == len(opened) == 300
    assert (first.stats["new"], first.point.mode) == (300, "full")
    opened.clear()
    second = run(world, source)
    assert second.point is not None
    assert opened == []
    assert second.stats["opened"] == second.stats["read"] == 0
    assert second.stats["unchanged"] == 300
    assert (second.point.mode, second.point.parent) == ("incremental", first.point.id)
    assert second.stats["added"] < 64 << 10
    assert second.stats["added_plain"] < WAY
    trees = {nodes(world, result.point)[os.fsencode(source)].content for result in (first, second)}
    assert len(trees) == 1
    assert_reads_back(world, second, source)


def test_only_what_changed_is_opened(world: World, source: Path, opened: list[bytes]) -> None:
    write_files(source, {f"d/{i}": READ(3000) for i in range(50)})
    run(world, source)
    opened.clear()
    write_files(source, {"d/7": b"other", "d/new": b"new"})
    (source / "d/9").unlink()
    result = run(world, source)
    assert sorted(opened) == [b"7", b"new"]
    assert (result.stats["changed"], result.stats["new"], result.stats["unchanged"]) == (1, 1, 48)
    assert_reads_back(world, result, source)


def test_attributes_alone_cost_no_data(world: World, source: Path) -> None:
    write_files(source, {"f": READ(200_000)})
    run(world, source)
    (source / "f").chmod(0o751)
    os.utime(source / "f", ns=(1, 1_700_000_000_123_456_789))
    result = run(world, source)
    node = nodes(world, result.point)[os.fsencode(source / "f")]
    assert (node.mode, node.mtime) == (0o751, 1_700_000_000_123_456_789)
    assert result.stats["added_plain"] < 8000  # trees


def test_a_change_behind_a_kept_mtime_is_seen(world: World, source: Path) -> None:
    path = source / "f"
    path.write_bytes(b"before")
    before = path.stat()
    run(world, source)
    path.write_bytes(b"behind")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = run(world, source)
    assert result.stats["changed"] == 1
    assert_reads_back(world, result, source)


def test_a_change_in_the_tick_of_the_last_run_is_seen(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write right after the reading, within the same tick of the clock, leaves size, mtime and ctime as they were."""
    path = source / "f"
    path.write_bytes(b"one")
    frozen = path.stat()
    world.backup(source, now=lambda: frozen.st_ctime_ns + 1_000_000)
    with path.open("r+b") as file:
        file.write(b"two")
    real = posix.list_directory

    def same_tick(directory: int) -> tuple[posix.Listing, list[tuple[bytes, OSError]]]:
        found, failed = real(directory)
        return [(name, frozen if name == b"f" else st) for name, st in found], failed

    monkeypatch.setattr(posix, "list_directory", same_tick)
    assert_reads_back(world, run(world, source), source)


def test_renaming_and_copying_add_no_data(world: World, source: Path) -> None:
    write_files(source, {"big": READ(2_000_000), "dir/small": READ(5000)})
    run(world, source)
    (source / "big").rename(source / "renamed")
    (source / "dir").rename(source / "moved")
    (source / "copy").write_bytes((source / "renamed").read_bytes())
    (source / "copy2").write_bytes((source / "moved/small").read_bytes())
    result = run(world, source)
    assert result.stats["added_plain"] < 64 << 10
    assert_reads_back(world, result, source)


def test_one_byte_in_front_of_a_large_file(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap_keys(monkeypatch)
    world = make_world(MemoryVault(), tmp_path / "cache", Parameters())
    data = random.Random(8).randbytes(64 << 20)
    (source / "f").write_bytes(data)
    run(world, source)
    (source / "f").write_bytes(b"!" + data)
    result = run(world, source)
    assert result.stats["added"] < len(data) // 100


def test_force_full_reads_again_and_adds_nothing(world: World, source: Path) -> None:
    write_files(source, {f"{i}": READ(4000) for i in range(20)})
    run(world, source)
    result = run(world, source, force_full=True)
    assert result.point is not None
    assert (result.stats["opened"], result.point.mode, result.point.parent) == (20, "full", None)
    assert result.stats["added_plain"] < WAY


def test_a_dry_run_reads_and_writes_nothing(world: World, source: Path, opened: list[bytes]) -> None:
    write_files(source, {"a": b"1", "b": READ(100_000)})
    before = [*world.vault.list("")]
    result = run(world, source, dry_run=True)
    assert (result.point, result.stats["new"], opened) == (None, 2, [])
    assert [*world.vault.list("")] == before
    run(world, source)
    with world.open() as repository:
        repository.rebuild()  # the index is not known to be complete any more
    assert run(world, source, dry_run=True).stats["unchanged"] == 2


def test_hard_links_are_read_once(world: World, source: Path, opened: list[bytes]) -> None:
    write_files(source, {"a": READ(90_000)})
    (source / "sub").mkdir()
    for name in ("b", "sub/c"):
        os.link(source / "a", source / name)
    result = run(world, source)
    assert (result.stats["opened"], len(opened), result.stats["files"]) == (1, 1, 3)
    found = nodes(world, result.point)
    groups = {found[os.fsencode(source / name)].link_group for name in ("a", "b", "sub/c")}
    assert len(groups) == 1
    assert groups != {None}
    assert_reads_back(world, result, source)


def test_another_set_of_paths_still_compares(world: World, source: Path, opened: list[bytes]) -> None:
    write_files(source, {"a/1": b"1", "b/2": b"2"})
    run(world, source)
    opened.clear()
    result = run(world, source / "a")
    assert opened == []
    assert list(nodes(world, result.point))[-1] == os.fsencode(source / "a/1")


# --- a source that moves ----------------------------------------------------------------------------------------------


def between(monkeypatch: pytest.MonkeyPatch, name: bytes, act: Callable[[int], None]) -> None:
    """Call `act` with a counter whenever the file `name` has been opened for reading."""
    real = posix.open_file
    seen = [0]

    def opening(opened: bytes, parent: int) -> int:
        descriptor = real(opened, parent)
        if opened == name:
            seen[0] += 1
            act(seen[0])
        return descriptor

    monkeypatch.setattr(posix, "open_file", opening)


@pytest.mark.parametrize("size", [100, 40_000, 300_000])
@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
def test_a_file_that_changes_once_is_read_again(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch, size: int, change: str
) -> None:
    path = source / "f"
    path.write_bytes(READ(size))
    time.sleep(0.03)
    new = {"grow": path.read_bytes() + b"more" * 9000, "shrink": READ(size // 3), "rewrite": READ(size)}[change]

    def act(count: int) -> None:
        if count == 1:
            path.write_bytes(new)

    between(monkeypatch, b"f", act)
    result = run(world, source)
    assert result.warnings == []
    assert_reads_back(world, result, source)


def test_a_file_that_never_stands_still_is_reported_and_read_next_time(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = source / "log"
    write_files(source, {"log": b"0", "other": b"quiet"})

    real = posix.read_xattrs

    def appending(where: int | bytes) -> dict[bytes, bytes]:  # after the file was looked at, before it is read
        if isinstance(where, int) and os.path.samestat(os.fstat(where), path.stat()):
            time.sleep(0.02)
            with path.open("ab") as file:
                file.write(b"more")
        return real(where)

    with monkeypatch.context() as patch:
        patch.setattr(posix, "read_xattrs", appending)
        result = run(world, source)
    assert [(warning.path, "changed while" in warning.reason) for warning in result.warnings] == [
        (os.fsencode(path), True)
    ]
    assert result.point is not None
    assert result.point.stats.warnings == 1
    again = run(world, source)
    assert again.warnings == []
    assert again.stats["changed"] == 1
    assert_reads_back(world, again, source)


def test_what_vanishes_is_reported(world: World, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(source, {"a": b"1", "gone": b"2", "dir/x": b"3", "z": b"4"})
    real = posix.list_directory

    def listing(directory: int) -> tuple[posix.Listing, list[tuple[bytes, OSError]]]:
        found = real(directory)
        for name in ("gone", "dir/x"):
            (source / name).unlink(missing_ok=True)
        if (source / "dir").exists():
            (source / "dir").rmdir()
        return found

    monkeypatch.setattr(posix, "list_directory", listing)
    result = run(world, source)
    assert sorted(os.path.basename(warning.path) for warning in result.warnings) == [b"dir", b"gone"]
    assert result.point is not None
    with world.open() as repository:
        contents = files_of(repository.reader(), result.point)
    assert {os.path.basename(path): content for path, content in contents.items()} == {b"a": b"1", b"z": b"4"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EPERM])
def test_an_unreadable_file_is_reported(world: World, source: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_files(source, {"a": b"1", "secret": b"2", "z": b"3"})
    real = os.open

    def refusing(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"secret":
            raise OSError(code, os.strerror(code), path)
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)
    result = run(world, source)
    assert [(warning.path, warning.reason) for warning in result.warnings] == [
        (os.fsencode(source / "secret"), os.strerror(code))
    ]
    assert result.stats["files"] == 2


def test_reading_that_fails_half_way_is_reported(world: World, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(source, {"a": READ(200_000), "b": b"fine"})
    real = os.readv
    calls = [0]

    def failing(descriptor: int, buffers: Any) -> int:
        calls[0] += 1
        if calls[0] == 1:
            return real(descriptor, [buffers[0][:50_000]])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "readv", failing)
    result = run(world, source)
    assert [warning.path for warning in result.warnings] == [os.fsencode(source / "a")]
    assert result.point is not None
    with world.open() as repository:
        assert list(files_of(repository.reader(), result.point).values()) == [b"fine"]
        assert check(repository, 100).ok


def test_a_link_swapped_in_for_a_directory_is_not_followed(
    world: World, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    write_files(outside, {"secret": b"secret"})
    write_files(source, {"dir/a": b"1", "z": b"2"})
    real = posix.list_directory

    def listing(directory: int) -> tuple[posix.Listing, list[tuple[bytes, OSError]]]:
        found = real(directory)
        if not (source / "dir").is_symlink():
            (source / "dir/a").unlink()
            (source / "dir").rmdir()
            (source / "dir").symlink_to(outside)
        return found

    monkeypatch.setattr(posix, "list_directory", listing)
    result = run(world, source)
    assert [warning.path for warning in result.warnings] == [os.fsencode(source / "dir")]
    assert not [path for path in nodes(world, result.point) if b"secret" in path]


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_something_swapped_in_for_a_file_is_not_read(
    world: World, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    write_files(source, {"f": b"1"})
    path = source / "f"
    real = posix.list_directory

    def listing(directory: int) -> tuple[posix.Listing, list[tuple[bytes, OSError]]]:
        found = real(directory)
        path.unlink(missing_ok=True)
        if kind == "link":
            path.symlink_to(tmp_path / "secret")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(posix, "list_directory", listing)
    result = run(world, source)
    assert len(result.warnings) == 1
    assert result.stats["files"] == 0


# --- what is left out -------------------------------------------------------------------------------------------------


def kept(world: World, result: BackupResult, source: Path) -> set[str]:
    """Paths below the source that the point has."""
    prefix = os.fsencode(source) + b"/"
    return {os.fsdecode(path[len(prefix) :]) for path in nodes(world, result.point) if path.startswith(prefix)}


def test_exclusions(world: World, source: Path) -> None:
    write_files(
        source, {"a.tmp": b"", "b.txt": b"", "build/x": b"", "src/build/y": b"", "src/keep.tmp": b"", "log": b""}
    )
    result = run(world, source, excludes=["*.tmp", "!keep.tmp", f"{source}/build/", "log/"])
    assert result.point is not None
    assert kept(world, result, source) == {"b.txt", "src", "src/build", "src/build/y", "src/keep.tmp", "log"}
    assert result.point.excludes[0] == "*.tmp"


def test_cache_directories(world: World, source: Path) -> None:
    tag = b"Signature: 8a477f597d28d172789f06886806bc55\n# a comment"
    write_files(
        source, {"c/CACHEDIR.TAG": tag, "c/junk": b"1", "c/sub/junk": b"1", "d/CACHEDIR.TAG": b"no", "d/f": b""}
    )
    assert "c/junk" in kept(world, run(world, source), source)
    result = run(world, source, exclude_caches=True)
    assert kept(world, result, source) == {"c", "c/CACHEDIR.TAG", "d", "d/CACHEDIR.TAG", "d/f"}


@pytest.mark.root
def test_one_file_system(world: World, source: Path) -> None:
    (source / "mounted").mkdir()
    assert os.system(f"mount -t tmpfs none {source}/mounted") == 0
    try:
        write_files(source, {"mounted/inside": b"1", "outside": b"2"})
        assert "mounted/inside" in kept(world, run(world, source), source)
        result = run(world, source, one_file_system=True)
        assert kept(world, result, source) == {"mounted", "outside"}
        named = run(world, source, source / "mounted", one_file_system=True)
        assert named.point is not None
        assert named.point.paths == [os.fsencode(source)]
    finally:
        assert os.system(f"umount {source}/mounted") == 0


def test_what_is_to_be_skipped(world: World, source: Path) -> None:
    write_files(source, {"vault/x": b"1", "f": b"2"})
    result = run(world, source, skip=[os.fsencode(source / "vault"), b"/no/such/thing"])
    assert kept(world, result, source) == {"f"}
    again = run(world, source, skip=[os.fsencode(source / "vault")])
    assert again.stats["added_plain"] < WAY


def test_paths_are_normalised(world: World, source: Path, tmp_path: Path) -> None:
    write_files(source, {"a/b/f": b"1", "a.b/g": b"2", "c/h": b"3"})
    (tmp_path / "link").symlink_to(source)
    result = run(world, source / "a", source / "a/b", tmp_path / "link/c/../c", source / "a", source / "a.b")
    assert result.point is not None
    assert result.point.paths == [os.fsencode(source / name) for name in ("a", "a.b", "c")]
    assert kept(world, result, source) == {"a", "a/b", "a/b/f", "a.b", "a.b/g", "c", "c/h"}
    above = nodes(world, result.point)[os.fsencode(source)]
    assert above.extra is not None
    assert above.extra.partial


def test_a_single_file_and_a_link_as_roots(world: World, source: Path) -> None:
    write_files(source, {"f": b"1", "g": b"2"})
    (source / "link").symlink_to("f")
    result = run(world, source / "f", source / "link")
    assert kept(world, result, source) == {"f", "link"}


def test_missing_paths(world: World, source: Path) -> None:
    missing = source.parent / "missing"
    result = run(world, source, missing)
    assert [warning.path for warning in result.warnings] == [os.fsencode(missing)]
    with pytest.raises(SourceUnreadable):
        run(world, missing)


def test_names_in_any_bytes(world: World, source: Path) -> None:
    names = [b"caf\xe9", b"\xff\xfe", b"a\nb", b" ", b"-rf", "\N{SNOWMAN}".encode(), b"x" * 255, b"\\"]
    for name in names:
        (source / os.fsdecode(name)).write_bytes(name)
    result = run(world, source)
    assert_reads_back(world, result, source)
    assert run(world, source).stats["opened"] == 0


def test_a_deep_tree(world: World, source: Path) -> None:
    levels = 1100
    here = os.open(source, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
        if level == levels - 1:
            os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    result = run(world, source)
    assert result.warnings == []
    deepest = os.fsencode(source) + b"/d" * levels + b"/bottom"
    assert deepest in nodes(world, result.point)
    again = run(world, source)
    assert again.stats["opened"] == 0
    assert again.stats["added_plain"] < WAY
    with world.open() as repository:
        assert check(repository, 100).ok
    _remove_deep(source)


def _remove_deep(source: Path) -> None:
    """What shutil.rmtree, which recurses, cannot: bring each level up before removing the one above."""
    (source / "d").rename(source / "next")
    while (source / "next").exists():
        (source / "next").rename(source / "now")
        if (source / "now/d").exists():
            (source / "now/d").rename(source / "next")
        (source / "now/bottom").unlink(missing_ok=True)
        (source / "now").rmdir()


# --- what is lost is read again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3000, 60_000, 900_000])
def test_chunks_lost_with_a_pack_are_read_again(world: World, source: Path, size: int) -> None:
    """From the smallest content references to lists: without its packs, everything comes from the source again."""
    write_files(source, {f"{i}": READ(size) for i in range(3)})
    run(world, source)
    with world.open() as repository:
        lost = [entry.name for entry in world.vault.list(repository.layout.root + "data/")]
        for name in lost[: len(lost) // 2 + 1]:
            world.vault.delete(name)
        assert not check(repository).ok
        repository.rebuild()
    result = run(world, source)
    assert 1 <= result.stats["opened"] <= 3
    assert_reads_back(world, result, source)
    with world.open() as repository:
        assert check(repository, 100).ok
        for point in repository.points():  # the first point is whole again too
            assert files_of(repository.reader(), point) == files_on_disk(source)


def test_trees_lost_with_a_pack_are_written_again(world: World, source: Path) -> None:
    write_files(source, {f"d{i}/f": READ(2000) for i in range(5)})
    run(world, source)
    with world.open() as repository:
        for entry in [*world.vault.list(repository.layout.root + "tree/")]:
            world.vault.delete(entry.name)
        repository.rebuild()
    result = run(world, source)
    assert [warning for warning in result.warnings if "read again" in warning.reason]
    assert_reads_back(world, result, source)
