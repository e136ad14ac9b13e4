"""What restore does where something stands in the way, and what a second run does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from cas.errors import PathNotFound
from cas.events import Event, Progress, Stage
from cas.model import Extra, HardLink, NodeKind
from cas.tasks.requests import Conflict, Planned, RestoreRequest, RestoreResult
from cas.tasks.restore import restore
from tests.restoring import Lab, Made, below, leftovers, made_directory, made_link, picture, use_processes

STAMP = "2026-11-22 07-30"


@pytest.fixture(params=["threads", "processes"])
def lab(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    use_processes(monkeypatch, use=request.param == "processes")
    return Lab(tmp_path / "cache")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    return target


def run(
    lab: Lab, entries: dict[bytes, Made], target: Path, conflict: Conflict, *, dry_run: bool = False
) -> RestoreResult:
    request = RestoreRequest(target=target, conflict=conflict, dry_run=dry_run)
    return restore(lab.repository, lab.made(entries), request)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# --- where things land ----------------------------------------------------------------------------------------------


def test_items_land_in_the_target_under_their_last_names(lab: Lab, target: Path) -> None:
    point = lab.made({b"a": made_directory({b"b": made_directory({b"c": Made(data=b"1")}), b"f": Made(data=b"2")})})
    result = restore(lab.repository, point, RestoreRequest(items=[b"/a/b", b"//a/f/"], target=target))
    assert (result.files, result.directories) == (2, 1)
    assert (target / "b" / "c").read_bytes() == b"1"
    assert (target / "f").read_bytes() == b"2"


def test_items_of_one_name(lab: Lab, target: Path) -> None:
    point = lab.made({b"a": made_directory({b"x": Made(data=b"1")}), b"b": made_directory({b"x": Made(data=b"22")})})
    result = restore(lab.repository, point, RestoreRequest(items=[b"/a/x", b"/b/x"], target=target))
    assert (result.files, result.renamed) == (2, 1)
    assert (target / "x").read_bytes() == b"1"
    assert (target / f"{STAMP} Copy of x").read_bytes() == b"22"


def test_the_root_as_an_item_means_everything(lab: Lab, target: Path) -> None:
    point = lab.made({b"a": made_directory({b"x": Made(data=b"1")})})
    restore(lab.repository, point, RestoreRequest(items=[b"/a/x", b"/"], target=target))
    assert names(target) == ["a"]


def test_a_missing_item_is_found_before_anything_is_written(lab: Lab, target: Path) -> None:
    point = lab.made({b"a": Made(data=b"1")})
    for item in (b"/b", b"/a/b", b"/a/.."):
        with pytest.raises(PathNotFound):
            restore(lab.repository, point, RestoreRequest(items=[b"/a", item], target=target))
    assert names(target) == []


def test_original_returns_things_to_where_they_were(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "lost").write_text("lost")
    (source / "other").write_text("other")
    before = picture(source / "sub")
    point = lab.protect(source)
    (source / "sub" / "lost").unlink()
    (source / "sub").rmdir()
    (source / "other").write_text("newer")
    source.chmod(0o711)
    result = restore(lab.repository, point, RestoreRequest(items=[os.fsencode(source / "sub")]))
    assert (result.files, result.directories, result.warnings) == (1, len(source.parts), [])
    assert picture(source / "sub") == before
    assert (source / "other").read_text() == "newer"
    assert stat.S_IMODE(source.stat().st_mode) == 0o711  # a directory on the way is left alone


def test_original_never_follows_a_link_on_the_way(lab: Lab, tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    point = lab.protect(source)
    elsewhere.mkdir()
    source.rename(tmp_path / "moved")
    source.symlink_to(elsewhere)
    request = RestoreRequest(items=[os.fsencode(source / "sub")], conflict=Conflict.OVERWRITE)
    result = restore(lab.repository, point, request)
    assert [warning.path for warning in result.warnings] == [os.fsencode(source)]
    assert names(elsewhere) == []
    assert source.is_symlink()


# --- the three rules ------------------------------------------------------------------------------------------------


def test_copies_are_named_after_the_point(lab: Lab, target: Path) -> None:
    (target / "file").write_text("mine")
    for content in (b"one", b"three"):
        result = run(lab, {b"file": Made(data=content), b"new": Made(data=b"n")}, target, Conflict.COPY)
        assert (result.renamed, result.warnings) == (1, [])
    assert names(target) == [f"{STAMP} Copy (2) of file", f"{STAMP} Copy of file", "file", "new"]
    assert (target / "file").read_text() == "mine"
    assert (target / f"{STAMP} Copy of file").read_bytes() == b"one"
    assert (target / f"{STAMP} Copy (2) of file").read_bytes() == b"three"


def test_copies_carry_local_time(lab: Lab, target: Path) -> None:
    (target / "file").write_text("mine")
    point = msgspec.structs.replace(lab.made({b"file": Made(data=b"x")}), utc_offset=-8 * 3600)
    restore(lab.repository, point, RestoreRequest(target=target))
    assert names(target) == ["2026-11-21 23-30 Copy of file", "file"]


def test_what_is_equal_needs_no_copy(lab: Lab, target: Path) -> None:
    entries = {b"file": Made(data=b"x"), b"link": made_link(b"to"), b"pipe": Made(NodeKind.FIFO)}
    run(lab, entries, target, Conflict.COPY)
    before = picture(target)
    result = run(lab, entries, target, Conflict.COPY)
    assert (result.files, result.others, result.unchanged) == (0, 0, 3)
    assert picture(target) == before
    (target / "file").write_text("mine")
    run(lab, entries, target, Conflict.COPY)
    result = run(lab, entries, target, Conflict.COPY)  # the copy of the run before is equal
    assert (result.files, result.renamed, result.unchanged) == (0, 0, 3)
    assert names(target) == [f"{STAMP} Copy of file", "file", "link", "pipe"]


def test_skip_leaves_what_is_there(lab: Lab, target: Path) -> None:
    (target / "file").write_text("mine")
    (target / "sub").mkdir(mode=0o711)
    (target / "wall").write_text("a file")
    entries = {
        b"file": Made(data=b"x"),
        b"sub": made_directory({b"new": Made(data=b"n")}),
        b"wall": made_directory({b"in it": Made()}),
    }
    result = run(lab, entries, target, Conflict.SKIP)
    assert (result.files, result.skipped, result.warnings) == (1, 2, [])
    assert (target / "file").read_text() == "mine"
    assert (target / "wall").read_text() == "a file"
    assert (target / "sub" / "new").read_bytes() == b"n"
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o711


def test_overwrite_replaces_what_differs_only(lab: Lab, target: Path) -> None:
    entries = {b"same": Made(data=b"same"), b"size": Made(data=b"size"), b"time": Made(data=b"time")}
    run(lab, entries, target, Conflict.OVERWRITE)
    same = (target / "same").stat()
    mtime = entries[b"size"].mtime
    (target / "size").write_text("longer")
    os.utime(target / "size", ns=(mtime, mtime))
    os.utime(target / "time", ns=(mtime, mtime + 1))
    result = run(lab, entries, target, Conflict.OVERWRITE)
    assert (result.files, result.unchanged) == (2, 1)
    assert (target / "same").stat().st_ino == same.st_ino
    assert (target / "same").stat().st_ctime_ns == same.st_ctime_ns
    assert (target / "size").read_text() == "size"
    assert (target / "time").stat().st_mtime_ns == mtime


@pytest.mark.parametrize("conflict", [Conflict.OVERWRITE, Conflict.COPY])
def test_verify_compares_content(lab: Lab, target: Path, conflict: Conflict) -> None:
    entries = {b"small": Made(data=b"small"), b"other": Made(data=b"other")}
    point = lab.made(entries)
    restore(lab.repository, point, RestoreRequest(target=target))
    (target / "small").write_text("SMALL")
    os.utime(target / "small", ns=(1, entries[b"small"].mtime))
    assert restore(lab.repository, point, RestoreRequest(target=target, conflict=conflict)).unchanged == 2
    result = restore(lab.repository, point, RestoreRequest(target=target, conflict=conflict, verify=True))
    assert (result.files, result.unchanged, result.verified) == (1, 1, 2)
    restored = target / ("small" if conflict is Conflict.OVERWRITE else f"{STAMP} Copy of small")
    assert restored.read_text() == "small"


def test_overwrite_breaks_links_that_the_point_does_not_have(lab: Lab, target: Path) -> None:
    entries = {b"a": Made(data=b"x"), b"b": Made(data=b"x", inode=2)}
    run(lab, entries, target, Conflict.OVERWRITE)
    (target / "b").unlink()
    os.link(target / "a", target / "b")
    run(lab, entries, target, Conflict.OVERWRITE)
    assert (target / "a").stat().st_ino != (target / "b").stat().st_ino


def test_overwrite_makes_links_that_the_point_has(lab: Lab, target: Path) -> None:
    extra = Extra(link=HardLink(1, 3))
    entries = {name: Made(data=b"x", extra=extra, inode=7) for name in (b"a", b"b", b"c")}
    run(lab, entries, target, Conflict.OVERWRITE)
    (target / "b").unlink()
    (target / "b").write_text("mine")
    (target / "c").unlink()
    result = run(lab, entries, target, Conflict.OVERWRITE)
    assert (result.files, result.unchanged) == (2, 1)
    assert {(target / name).stat().st_ino for name in "abc"} == {(target / "a").stat().st_ino}
    result = run(lab, entries, target, Conflict.OVERWRITE)
    assert (result.files, result.unchanged) == (0, 3)
    assert leftovers(target) == []


# --- directories against files --------------------------------------------------------------------------------------


def test_overwrite_puts_a_directory_in_the_place_of_a_file_or_a_link(lab: Lab, target: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (target / "file").write_text("mine")
    (target / "link").symlink_to(tmp_path / "outside")
    inside = made_directory({b"x": Made(data=b"x")})
    result = run(lab, {b"file": inside, b"link": inside}, target, Conflict.OVERWRITE)
    assert result.warnings == []
    assert (target / "file" / "x").read_bytes() == (target / "link" / "x").read_bytes() == b"x"
    assert not (target / "link").is_symlink()
    assert names(tmp_path / "outside") == []


def test_overwrite_replaces_empty_directories_only(lab: Lab, target: Path) -> None:
    for name in ("empty", "full", "empty too"):
        (target / name).mkdir()
    (target / "full" / "mine").touch()
    entries = {b"empty": Made(data=b"x"), b"full": Made(data=b"x"), b"empty too": made_link(b"to")}
    result = run(lab, entries, target, Conflict.OVERWRITE)
    assert [(warning.path, "not empty" in warning.reason) for warning in result.warnings] == [
        (os.fsencode(target / "full"), True)
    ]
    assert (target / "empty").read_bytes() == b"x"
    assert os.readlink(target / "empty too") == "to"
    assert names(target / "full") == ["mine"]


def test_copy_puts_either_beside_the_other(lab: Lab, target: Path) -> None:
    (target / "a").write_text("mine")
    (target / "b").mkdir()
    entries = {b"a": made_directory({b"x": Made(data=b"x")}), b"b": Made(data=b"b")}
    for again in (False, True):
        result = run(lab, entries, target, Conflict.COPY)
        assert (result.renamed, result.warnings) == (0 if again else 2, [])
        assert names(target) == [f"{STAMP} Copy of a", f"{STAMP} Copy of b", "a", "b"]
    assert (target / f"{STAMP} Copy of a" / "x").read_bytes() == b"x"


# --- the second run, the dry run, events ----------------------------------------------------------------------------


def test_a_second_run_finishes_an_interrupted_one(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    for number in range(20):
        (source / "sub" / f"{number}").write_text(f"{number}")
    point = lab.protect(source)
    there = below(target, source)
    (there / "sub").mkdir(parents=True, mode=0o700)
    (there / "sub" / ".backdrive-99999999-0123abcd-1f").write_text("half")
    (there / "sub" / ".backdrive-mine").write_text("not ours")
    for number in range(7):
        (there / "sub" / f"{number}").write_text(f"{number}")
        when = (source / "sub" / f"{number}").stat().st_mtime_ns
        os.utime(there / "sub" / f"{number}", ns=(when, when))
    result = restore(lab.repository, point, RestoreRequest(target=target, conflict=Conflict.OVERWRITE))
    assert (result.files, result.unchanged, result.warnings) == (13, 7, [])
    (there / "sub" / ".backdrive-mine").unlink()
    os.utime(there / "sub", ns=(1, (source / "sub").stat().st_mtime_ns))
    assert picture(there) == picture(source)


@pytest.mark.parametrize("conflict", list(Conflict))
def test_a_dry_run_tells_and_touches_nothing(lab: Lab, target: Path, conflict: Conflict) -> None:
    (target / "there").write_text("mine")
    (target / "sub").mkdir()
    (target / "sub" / ".backdrive-99999999-0123abcd-1f").touch()
    link = Extra(link=HardLink(1, 2))
    entries = {
        b"new": made_directory({b"f": Made(data=b"12345", extra=link), b"g": Made(data=b"12345", extra=link)}),
        b"sub": made_directory({b"link": made_link(b"x")}),
        b"there": Made(data=b"1"),
    }
    before = picture(target)
    result = run(lab, entries, target, conflict, dry_run=True)
    assert picture(target) == before
    there = {
        Conflict.COPY: Planned(os.fsencode(target / f"{STAMP} Copy of there"), "copy"),
        Conflict.OVERWRITE: Planned(os.fsencode(target / "there"), "replace"),
        Conflict.SKIP: Planned(os.fsencode(target / "there"), "skip"),
    }
    assert result.planned == [
        Planned(os.fsencode(target / "new"), "create"),
        Planned(os.fsencode(target / "new" / "f"), "create"),
        Planned(os.fsencode(target / "new" / "g"), "link"),
        Planned(os.fsencode(target / "sub" / "link"), "create"),
        there[conflict],
    ]
    planned = result.planned
    real = run(lab, entries, target, conflict)
    result.planned = []
    assert result == real, planned


def test_a_dry_run_makes_no_target(lab: Lab, target: Path) -> None:
    result = run(lab, {b"d": made_directory({b"f": Made(data=b"1")})}, target / "new", Conflict.COPY, dry_run=True)
    assert (result.files, result.directories, result.size) == (1, 1, 1)
    assert not (target / "new").exists()


def test_events(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"12345")
    events: list[Event] = []
    restore(lab.repository, lab.protect(source), RestoreRequest(target=tmp_path / "target"), events.append)
    assert [event.name for event in events if isinstance(event, Stage)] == ["preparing", "transferring", "done"]
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert (last.files, last.total_files, last.size, last.total_size) == (1, 1, 5, 5)
