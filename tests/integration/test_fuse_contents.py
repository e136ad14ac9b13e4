"""A mounted point against the tree it was made of: compared by others, and looked at with the system's own tools."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.engine import walk_disk, write_files
from tests.integration.drive_bench import Bench

pytestmark = pytest.mark.fuse


def _rsync(source: Path, other: Path) -> str:
    """What rsync would change to make `other` equal to `source`, by content and every attribute."""
    command = ["rsync", "-nacHAX", "--delete", "--itemize-changes", f"{source}/", f"{other}/"]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True).stdout


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _make_hard_tree(root: Path) -> None:
    """Every kind of entry and attribute that needs no privilege."""
    write_files(root, {"plain.txt": b"hello\n", "empty": b"", "deep/er/still/leaf": b"leaf", "a b/c\nd": b"odd name"})
    (root / "large.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    (root / "compressible").write_bytes(b"0123456789" * 200_000)
    os.symlink("deep/er", root / "link")
    os.symlink("/nowhere/at all", root / "dangling")
    os.symlink(b"\xff\xfe" * 100, os.fsencode(root) + b"/to bytes")
    os.mkfifo(root / "pipe", 0o620)
    (root / "modes").mkdir(0o1777)
    for mode in (0o400, 0o4755, 0o2755, 0o666, 0o700):
        path = root / "modes" / f"{mode:o}"
        path.write_bytes(b"x")
        path.chmod(mode)
    os.link(root / "plain.txt", root / "deep/plain too")
    os.link(root / "plain.txt", root / "third")
    names = [b"\xff\xfe", b"caf\xe9", "漢字".encode(), b"-rf", b"*?[", b"back\\slash", b"x" * 255, b"tab\there"]
    for name in names:
        with open(os.fsencode(root) + b"/" + name, "wb") as file:
            file.write(name)
    with open(root / "sparse", "wb") as file:
        file.truncate(8_000_000)
        file.seek(1_000_000)
        file.write(b"middle" * 1000)
    for number, entry in enumerate(walk_disk(os.fsencode(root))):
        if not stat.S_ISLNK(os.lstat(entry).st_mode):
            os.utime(entry, ns=(10**18 + number, 1_234_567_890_123_456_789 - number * 1_000_000_007))


def _set_acls(root: Path) -> None:
    _output("setfacl", "-m", "u:1234:r,g:4321:rx,m::rx", root / "plain.txt")
    _output("setfacl", "-d", "-m", "u:1234:rwx", root / "deep")
    os.setxattr(root / "compressible", "user.comment", b"\0binary\xff")
    os.setxattr(root / "deep", "user.on a folder", b"yes")


@pytest.fixture
def hard_tree(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(bench.source)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")  # relative: the length of a socket's path is limited
    monkeypatch.chdir("/")
    _make_hard_tree(bench.source)
    _set_acls(bench.source)
    return bench.source


def test_rsync_finds_no_difference(bench: Bench, hard_tree: Path) -> None:
    with bench.mounted_source() as mounted:
        assert _rsync(hard_tree, mounted) == ""
        assert _rsync(mounted, hard_tree) == ""


def test_attributes_to_the_nanosecond(bench: Bench, hard_tree: Path) -> None:
    with bench.mounted_source() as mounted:
        for path in walk_disk(os.fsencode(hard_tree)):
            ours = os.fsencode(mounted) + path[len(os.fsencode(hard_tree)) :]
            want, got = os.lstat(path), os.lstat(ours)
            for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ctime_ns", "st_rdev"):
                assert getattr(got, name) == getattr(want, name), (path, name)
            if not stat.S_ISDIR(want.st_mode):
                assert (got.st_size, got.st_nlink) == (want.st_size, want.st_nlink), path
            if stat.S_ISLNK(want.st_mode):
                assert os.readlink(ours) == os.readlink(path)
            elif os.listxattr(path):
                assert {n: os.getxattr(ours, n) for n in os.listxattr(ours)} == {
                    n: os.getxattr(path, n) for n in os.listxattr(path)
                }
            if stat.S_ISDIR(want.st_mode):
                assert sorted(os.listdir(ours)) == sorted(os.listdir(path))
        names = ("plain.txt", "third", "deep/plain too")
        assert len({(mounted / name).stat().st_ino for name in names}) == 1
        assert (mounted / "sparse").stat().st_blocks * 512 < 1_000_000
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(mounted / "plain.txt", "user.none")
        assert os.listdir(mounted / "modes/..") == os.listdir(mounted)


def test_acls_are_shown_and_enforced(bench: Bench, hard_tree: Path) -> None:
    with bench.mounted_source() as mounted:
        for name in ("plain.txt", "deep", "empty"):
            ours = _output("getfacl", "-n", "--absolute-names", "--omit-header", mounted / name)
            assert ours == _output("getfacl", "-n", "--absolute-names", "--omit-header", hard_tree / name)
        assert "user:1234:r--" in _output("getfacl", "-n", "--absolute-names", mounted / "plain.txt")


@pytest.mark.root
def test_devices_owners_and_privileged_attributes(bench: Bench) -> None:
    root = bench.source
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "disk", 0o660 | stat.S_IFBLK, os.makedev(259, 1_000_000 & 0xFFFFF))
    write_files(root, {"owned": b"x", "capable": b"#!", "secret": b"for 1234 only"})
    os.chown(root / "owned", 12345, 54321)
    os.setxattr(root / "capable", "trusted.backdrive", b"t")
    os.setxattr(root / "capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chmod(root / "secret", 0o600)
    _output("setfacl", "-m", "u:1234:r", root / "secret")
    for path in (bench.root, *bench.root.parents):
        if path != path.parent and path.stat().st_uid == 0 and str(path).count("/") > 1:
            path.chmod(path.stat().st_mode | 0o055)
    with bench.mounted_source() as mounted:
        assert _rsync(root, mounted) == ""
        assert os.stat(mounted / "disk").st_rdev == os.stat(root / "disk").st_rdev
        with pytest.raises(PermissionError):
            (mounted / "null").open("rb")  # nodev: a device in a point is only a name
        code = "import os,sys; os.setgid(7); os.setuid(int(sys.argv[1])); print(open(sys.argv[2]).read())"
        for user, allowed in ((1234, True), (1235, False)):
            reading = ["python3", "-c", code, str(user), os.fspath(mounted / "secret")]
            assert (subprocess.run(reading, capture_output=True, check=False).returncode == 0) == allowed


def test_a_directory_of_five_thousand(bench: Bench) -> None:
    names = {f"entry {number:05d}" for number in range(5000)}
    for name in names:
        (bench.source / name).write_text(name)
    with bench.mounted_source() as mounted:
        assert set(os.listdir(mounted)) == names
        with os.scandir(mounted) as entries:
            first = {entry.name: entry.inode() for entry in entries}
        assert len(set(first.values())) == 5000
        assert all((mounted / name).stat().st_ino == first[name] for name in ("entry 00000", "entry 04999"))
        assert (mounted / "entry 04321").read_text() == "entry 04321"
        assert not (mounted / "entry 05000").exists()
        assert not (mounted / "entry 05000").exists()  # the kernel remembers that


def test_ranges_of_a_long_and_of_a_sparse_file(bench: Bench) -> None:
    random_bytes = random.Random(2)
    data = random_bytes.randbytes(5_000_000)
    (bench.source / "long").write_bytes(data)
    holes = bytearray(3_000_000)
    with open(bench.source / "sparse", "wb") as file:
        file.truncate(len(holes))
        for offset in (0, 1_048_576, 2_999_900):
            file.seek(offset)
            file.write(b"data" * 25)
            holes[offset : offset + 100] = b"data" * 25
    with bench.mounted_source() as mounted:
        for name, expected in (("long", data), ("sparse", bytes(holes))):
            assert (mounted / name).read_bytes() == expected
            with open(mounted / name, "rb", buffering=0) as file:
                for _ in range(200):
                    offset = random_bytes.randrange(len(expected))
                    size = random_bytes.randrange(100_000)
                    assert os.pread(file.fileno(), size, offset) == expected[offset : offset + size]
                assert os.pread(file.fileno(), 10, len(expected)) == b""


def test_the_size_of_the_file_system(bench: Bench) -> None:
    (bench.source / "file").write_bytes(b"x" * 1_000_000)
    with bench.mounted_source() as mounted:
        usage = os.statvfs(mounted)
        assert usage.f_blocks * usage.f_frsize >= 1_000_000
        assert (usage.f_bfree, usage.f_namemax) == (0, 255)
        assert usage.f_flag & os.ST_RDONLY and usage.f_flag & os.ST_NOSUID
