"""Restore brings back every kind of entry with all its attributes."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from cas.model import Extra, NodeKind, Owner
from cas.tasks.requests import Conflict, RestoreRequest
from cas.tasks.restore import restore
from tests.restoring import Lab, Made, below, leftovers, made_directory, picture, use_processes, with_acl


@pytest.fixture(params=["threads", "processes"])
def lab(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lab:
    use_processes(monkeypatch, use=request.param == "processes")
    return Lab(tmp_path / "cache")


def whole(lab: Lab, source: Path, target: Path, **options: object) -> None:
    """Protect and restore a tree, and compare."""
    point = lab.protect(source)
    result = restore(lab.repository, point, RestoreRequest(target=target, **options))  # type: ignore[arg-type]
    assert result.warnings == []
    assert picture(below(target, source)) == picture(source)
    assert leftovers(target) == []


def test_files_of_all_sizes(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for size in (0, 1, 16 << 10, (16 << 10) + 1, 300_000, (8 << 20) + 1, 21 << 20):
        (source / f"{size}").write_bytes(os.urandom(size))
        (source / "deep" / f"{size} zeros").write_bytes(bytes(size))
    (source / "deep" / "er" / "x").write_text("x")
    (source / "empty").mkdir()
    whole(lab, source, tmp_path / "target")


def test_verify_reads_everything_back(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"small")
    (source / "large").write_bytes(os.urandom(9 << 20))
    with open(source / "sparse", "wb") as file:
        file.truncate(1 << 20)
    point = lab.protect(source)
    result = restore(lab.repository, point, RestoreRequest(target=tmp_path / "target", verify=True))
    assert (result.files, result.verified, result.warnings) == (3, 3, [])
    assert picture(below(tmp_path / "target", source)) == picture(source)


def test_names_in_any_bytes(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (b"\xff\xfe", b"new\nline", b"\xe4\xf6", "grün".encode(), b" ", b"-rf", b"a" * 255, b"\x01\x7f"):
        Path(os.fsdecode(os.fsencode(source) + b"/" + name)).write_bytes(name)
    whole(lab, source, tmp_path / "target")


def test_modes_and_times_also_of_directories(lab: Lab, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "closed").mkdir(parents=True)
    (source / "closed" / "file").write_text("x")
    modes = (0o400, 0o644, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1644)
    for mode in (0o000, *modes) if os.geteuid() == 0 else modes:  # nobody else could read the first one back
        (source / f"{mode:o}").write_text("x")
        (source / f"{mode:o}").chmod(mode)
    os.utime(source / "644", ns=(1, 999_999_999))
    os.utime(source / "closed" / "file", ns=(5, -1_000_000_001))
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o3777)
    os.utime(source / "sticky", ns=(7, 7_000_000_007))
    (source / "closed").chmod(0o500)
    os.utime(source / "closed", ns=(7, 8_000_000_007))
    os.utime(source, ns=(7, 9_000_000_007))
    whole(lab, source, tmp_path / "target")


def test_hard_links(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    (source / "a" / "first").write_bytes(os.urandom(9 << 20))
    (source / "a" / "small").write_bytes(b"small")
    os.symlink("x", source / "a" / "link")
    for name in ("first", "small", "link"):
        os.link(source / "a" / name, source / "b" / name, follow_symlinks=False)
        os.link(source / "a" / name, source / "a" / f"{name} too", follow_symlinks=False)
    whole(lab, source, target)
    there = below(target, source)
    for name in ("first", "small", "link"):
        inodes = {(there / path).lstat().st_ino for path in (f"a/{name}", f"b/{name}", f"a/{name} too")}
        assert len(inodes) == 1


def test_hard_link_of_what_is_not_selected(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a").mkdir(parents=True)
    (source / "b").mkdir()
    (source / "a" / "file").write_bytes(b"content")
    os.link(source / "a" / "file", source / "b" / "file")
    point = lab.protect(source)
    result = restore(lab.repository, point, RestoreRequest(items=[os.fsencode(source / "b")], target=target))
    assert result.warnings == []
    assert (target / "b" / "file").read_bytes() == b"content"
    assert (target / "b" / "file").stat().st_nlink == 1


def test_sparse_files_stay_sparse(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name, size, data in (
        ("hole", 64 << 20, []),
        ("middle", 64 << 20, [(32 << 20, b"x" * 5000)]),
        ("ends", 64 << 20, [(0, b"begin"), ((64 << 20) - 3, b"end")]),
        ("tail", 1 << 20, [(0, os.urandom(100_000))]),
    ):
        with open(source / name, "wb") as file:
            file.truncate(size)
            for offset, content in data:
                file.seek(offset)
                file.write(content)
    whole(lab, source, target)
    for name in ("hole", "middle", "ends", "tail"):
        assert (below(target, source) / name).stat().st_blocks <= (source / name).stat().st_blocks + 16


def test_xattrs_and_acls(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "directory").mkdir(parents=True)
    (source / "file").write_text("x")
    os.setxattr(source / "file", "user.key", b"\0value")
    os.setxattr(source / "file", "user.empty", b"")
    os.setxattr(source / "directory", "user.key", b"of a directory")
    with_acl(source / "file")
    with_acl(source / "directory")
    with_acl(source / "directory", "system.posix_acl_default")
    (source / "directory" / "inherits").write_text("x")
    whole(lab, source, target)


def test_acls_of_the_target_do_not_creep_in(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    (source / "file").write_text("x")
    (source / "sub" / "fifo").touch()
    target.mkdir()
    with_acl(target, "system.posix_acl_default")
    point = lab.protect(source)
    items = [os.fsencode(source / name) for name in ("sub", "file")]
    assert restore(lab.repository, point, RestoreRequest(items=items, target=target)).warnings == []
    assert picture(target / "sub") == picture(source / "sub")
    assert picture(target / "file") == picture(source / "file")


@pytest.mark.root
def test_special_files_owners_and_capabilities(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    os.mkfifo(source / "fifo", 0o620)
    os.mknod(source / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(source / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    os.symlink(b"somewhere/\xff", source / "link")
    os.lchown(source / "link", 1234, 4321)
    os.setxattr(source / "link", "trusted.key", b"of a link", follow_symlinks=False)
    os.utime(source / "link", ns=(1, 1_234_567_891), follow_symlinks=False)
    (source / "setuid").write_text("x")
    os.chown(source / "setuid", 1234, 4321)
    (source / "setuid").chmod(0o6755)
    (source / "capable").write_text("x")
    os.chown(source / "capable", 1234, 0)
    os.setxattr(source / "capable", "security.capability", b"\1\0\0\2\0\4\0\0" + bytes(12))
    for name in ("fifo", "null", "disk", "socket"):
        os.chown(source / name, 12, 34)
        os.utime(source / name, ns=(1, 77_000_000_001))
    (source / "theirs").mkdir(mode=0o700)
    (source / "theirs" / "file").write_text("x")
    os.chown(source / "theirs", 1234, 4321)
    os.chown(source / "theirs" / "file", 1234, 4321)
    whole(lab, source, target)


@pytest.mark.root
def test_owners_go_by_name_first(lab: Lab, tmp_path: Path) -> None:
    known = Made(data=b"x", owner=Owner(4242, 4243, b"daemon", b"no such group"))
    point = lab.made({b"d": made_directory({b"file": known})})
    restore(lab.repository, point, RestoreRequest(target=tmp_path / "target"))
    have = (tmp_path / "target" / "d" / "file").stat()
    assert (have.st_uid, have.st_gid) == (1, 4243)


@pytest.mark.root
def test_setgid_directories_hand_their_group_to_nothing(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("x")
    (source / "sub" / "file").write_text("x")
    target.mkdir()
    os.chown(target, 0, 4321)
    target.chmod(0o2755)
    point = lab.protect(source)
    assert restore(lab.repository, point, RestoreRequest(items=[os.fsencode(source)], target=target)).warnings == []
    assert picture(target / "source") == picture(source)


@pytest.mark.root
def test_without_root_owners_are_told_once(lab: Lab) -> None:
    files = {b"%d" % number: Made(data=b"x", owner=Owner(1234, 4321), mode=0o4755) for number in range(5)}
    for name in (b"device", b"other device"):
        files[name] = Made(NodeKind.CHARACTER_DEVICE, mode=0o600, extra=Extra(device=(1, 3)))
    point = lab.made({b"d": made_directory(files)})
    with tempfile.TemporaryDirectory() as place:  # which, unlike `tmp_path`, others may enter
        os.chown(place, 4444, 4444)
        target = Path(place)
        os.setegid(4444)
        os.seteuid(4444)
        try:
            result = restore(lab.repository, point, RestoreRequest(items=[b"/d"], target=target))
        finally:
            os.seteuid(0)
            os.setegid(0)
        mode = stat.S_IMODE((target / "d" / "0").stat().st_mode)
    assert sorted(warning.reason.split(" (")[0] for warning in result.warnings) == [
        "A device could not be made",
        "The owner could not be restored",
    ]
    assert result.files == 5
    assert mode == 0o755  # no set-uid for another user


def test_attributes_are_put_right_on_what_stays(lab: Lab, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("x")
    os.setxattr(source / "sub" / "file", "user.kept", b"1")
    os.symlink("x", source / "link")
    os.mkfifo(source / "fifo")
    whole(lab, source, target)
    there = below(target, source)
    (there / "sub").chmod(0o777)
    (there / "sub" / "file").chmod(0o600)
    os.setxattr(there / "sub" / "file", "user.kept", b"2")
    os.setxattr(there / "sub" / "file", "user.more", b"3")
    os.utime(there / "link", ns=(1, 1), follow_symlinks=False)
    (there / "fifo").chmod(0o777)
    point = lab.protect(source)
    result = restore(lab.repository, point, RestoreRequest(target=target, conflict=Conflict.OVERWRITE))
    assert (result.files, result.others, result.unchanged, result.warnings) == (0, 0, 3, [])
    assert picture(there) == picture(source)
