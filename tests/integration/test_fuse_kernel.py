"""What the kernel is told and asked: opening nothing, large requests, owners, holes, users without rights, and ends."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mount import drives
from tests.conftest import count_mount, fuse_mounts
from tests.engine import write_files
from tests.integration.drive_bench import Bench, inside, kill, pid_of

pytestmark = pytest.mark.fuse

_ROOT = Path(drives.__file__).parents[1]
_NOBODY = 65534


def _run(code: str, *arguments: object, timeout: float = 20) -> str:
    """Python in a process of its own, so that what hangs fails the test and not the tests."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def _mapped(bench: Bench, uid: int | None, gid: int | None, umask: int | None) -> Iterator[Path]:
    """A drive with other owners and modes; the path of the source in it."""
    target = bench.root / "drive"
    request = bench.request(bench.backup(), target)
    drives.start(replace(request, allow_other=True, uid=uid, gid=gid, umask=umask))
    try:
        count_mount(target)
        yield inside(target, bench.source)
    finally:
        drives.stop(target, bench.records)


_LOOK = """
import os, sys
root = sys.argv[1]
for folder, folders, files in os.walk(root):
    for name in files:
        path = os.path.join(folder, name)
        os.lstat(path)
        if os.path.islink(path):
            continue
        descriptor = os.open(path, os.O_RDONLY)  # not open(): that asks whether it is a terminal
        print(len(os.read(descriptor, 100_000)))
        os.close(descriptor)
print(os.readlink(root + "/link"))
"""


def test_what_was_read_once_needs_no_drive(bench: Bench) -> None:
    """Names, attributes, listings, data and links stay with the kernel: it does not even ask to open anything."""
    write_files(bench.source, {f"folder {number % 3}/file {number}": b"x" * number * 1000 for number in range(30)})
    os.symlink("target", bench.source / "link")
    with bench.drive(bench.backup()) as target:
        mounted = inside(target, bench.source)
        pid = pid_of(bench, target)
        for attempt in range(3):  # the system may have wanted its memory for something else
            before = _run(_LOOK, mounted)
            assert len(before.splitlines()) == 31
            os.kill(pid, signal.SIGSTOP)
            try:
                assert _run(_LOOK, mounted, timeout=5) == before
                break
            except subprocess.TimeoutExpired:
                assert attempt < 2
            finally:
                os.kill(pid, signal.SIGCONT)


_RECORDING = """
import json, sys
from mount import fuse_wire as wire
from mount.fuse_session import Counters, Session
from tests.bench.drive_ceiling import InMemory, load
from pathlib import Path
source, target = sys.argv[1:]
drive = InMemory(load(Path(source), 8 << 20, 0))
sizes, asked = [], []
read = drive.operations[wire.READ]
def noted(node, body, wait):
    sizes.append(wire.READ_IN.unpack_from(body)[2])
    return read(node, body, wait)
drive.operations[wire.READ] = noted
def refused(opcode):
    def operation(node, body, wait):
        asked.append(opcode)
        raise wire_refused
    return operation
from mount.fuse_session import Refused
import errno
wire_refused = Refused(errno.ENOSYS)
for opcode in (wire.OPEN, wire.OPENDIR, 18, 29):
    drive.operations[opcode] = refused(opcode)
def fault(opcode, node, error):
    raise error
Session(drive.operations, fault, drive.flags, Counters()).serve(
    target, lambda: print("ready", flush=True), allow_other=False)
print(json.dumps([sizes, asked]))
"""

_DIRECT = """
import mmap, os, sys
memory = mmap.mmap(-1, 4 << 20)
descriptor = os.open(sys.argv[1] + "/big.bin", os.O_RDONLY | os.O_DIRECT)
assert os.preadv(descriptor, [memory], 1 << 20) == 4 << 20
for _ in range(5):
    os.close(os.open(sys.argv[1] + "/tree/small", os.O_RDONLY))
    os.listdir(sys.argv[1] + "/tree")
"""


def test_one_request_may_ask_for_a_mebibyte_and_none_opens(tmp_path: Path) -> None:
    source, target = tmp_path / "tree", tmp_path / "drive"
    write_files(source, {"small": b"x"})
    target.mkdir()
    command: list[str | Path] = [sys.executable, "-c", _RECORDING, source, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as served:
        assert served.stdout is not None
        assert served.stdout.readline() == "ready\n"
        count_mount(target)
        try:
            _run(_DIRECT, target)
        finally:
            served.terminate()
        sizes, asked = json.loads(served.stdout.readline())
        assert served.wait(20) == 0
    assert sizes == [1 << 20] * 4
    assert sorted(asked) == [14, 27]  # one file and one directory: then it knows that neither needs opening
    assert target not in fuse_mounts()


def test_a_directory_so_large_that_the_kernel_keeps_only_its_beginning(bench: Bench) -> None:
    """Beyond 32,768 entries names alone are listed, and attributes follow when somebody looks each up."""
    count = 34_000
    for number in range(count):
        os.close(os.open(bench.source / f"{number:05d}", os.O_CREAT | os.O_WRONLY))
    with bench.mounted_source() as mounted:
        with os.scandir(mounted) as entries:
            listed = [(entry.name, entry.inode()) for entry in entries]
        assert sorted(name for name, _ in listed) == [f"{number:05d}" for number in range(count)]
        assert len({inode for _, inode in listed}) == count
        for name, inode in listed[:: count // 50]:
            assert (mounted / name).stat().st_ino == inode
        for _ in range(2):  # now with all attributes, and then from what the kernel kept
            with os.scandir(mounted) as entries:
                assert {(entry.name, entry.stat(follow_symlinks=False).st_ino) for entry in entries} == set(listed)


def test_owners_and_modes_may_be_others(bench: Bench) -> None:
    write_files(bench.source, {"folder/file": b"x", "program": b"#!"})
    (bench.source / "program").chmod(0o4777)
    (bench.source / "folder").chmod(0o2775)
    os.symlink("program", bench.source / "link")
    with _mapped(bench, 1234, 4321, 0o027) as mounted:
        for path, mode in ((mounted / "folder", 0o2750), (mounted / "program", 0o4750), (mounted, None)):
            found = path.stat()
            assert (found.st_uid, found.st_gid) == (1234, 4321)
            assert mode is None or stat.S_IMODE(found.st_mode) == mode
        with os.scandir(mounted / "folder") as entries:
            assert [(entry.name, entry.stat().st_uid) for entry in entries] == [("file", 1234)]
        assert os.lstat(mounted / "link").st_mode == stat.S_IFLNK | 0o777
    with _mapped(bench, None, None, None) as mounted:
        assert mounted.stat().st_uid == os.getuid()
        assert stat.S_IMODE((mounted / "program").stat().st_mode) == 0o4777


@pytest.mark.root
def test_a_plain_user_reads_what_belongs_to_another(bench: Bench) -> None:
    write_files(bench.source, {"secret": b"of root"})
    (bench.source / "secret").chmod(0o600)
    subprocess.run(["setfacl", "-m", "u:1234:-", bench.source / "secret"], check=True)
    for path in (bench.root, *bench.root.parents):
        if path != path.parent and path.stat().st_uid == 0 and str(path).count("/") > 1:
            path.chmod(path.stat().st_mode | 0o055)
    reading = "import os,sys; os.setgid(7); os.setuid(1234); print(open(sys.argv[1]).read(), end='')"
    with _mapped(bench, 1234, None, None) as mounted:
        assert _run(reading, mounted / "secret") == "of root"
    with _mapped(bench, 1235, None, None) as mounted, pytest.raises(AssertionError, match="PermissionError"):
        _run(reading, mounted / "secret")


_AS_DAEMON = "import os,sys; os.setgroups([]); os.setgid(1); os.setuid(1); print(open(sys.argv[1]).read(), end='')"


@pytest.mark.root
def test_the_mask_of_an_acl_is_no_right_of_the_group(bench: Bench) -> None:
    """A mode's group bits are the ACL's mask: where the ACL is not heeded, the group gets what its own entry says."""
    acls = {
        "closed": "u:nobody:rw,g::---",
        "open": "u:nobody:rw,g::r--",
        "masked": "u:nobody:rw,g::r--,m::---",
        "folder/closed": "u:nobody:rw,g::---",
    }
    write_files(bench.source, dict.fromkeys([*acls, "plain"], b"of root"))
    for name in [*acls, "plain"]:
        os.chown(bench.source / name, 0, 1)
        (bench.source / name).chmod(0o640 if name == "plain" else 0o600)
    for name, acl in acls.items():
        subprocess.run(["setfacl", "-m", acl, bench.source / name], check=True)
    for path in (bench.root, *bench.root.parents):
        if path != path.parent and path.stat().st_uid == 0 and str(path).count("/") > 1:
            path.chmod(path.stat().st_mode | 0o055)
    modes = {"closed": 0o600, "open": 0o640, "masked": 0o600, "folder/closed": 0o600, "plain": 0o640}
    for mapping in ((None, None, 0o022), (None, 1, None), (4711, None, None), None):
        with _mapped(bench, *(mapping or (None, None, None))) as mounted:
            with os.scandir(mounted / "folder") as entries:
                listed = {f"folder/{entry.name}": entry.stat().st_mode for entry in entries}
            for name, mode in modes.items():
                found = (mounted / name).stat().st_mode
                assert listed.get(name, found) == found
                assert mapping is None or stat.S_IMODE(found) == mode, (name, mapping)
                assert ("system.posix_acl_access" in os.listxattr(mounted / name)) is (name in acls)
                if mode & stat.S_IRGRP:
                    assert _run(_AS_DAEMON, mounted / name) == "of root"
                else:
                    with pytest.raises(AssertionError, match="PermissionError"):
                        _run(_AS_DAEMON, mounted / name)


def test_programs_find_data_and_holes(bench: Bench) -> None:
    with open(bench.source / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(2 << 20)
        file.write(b"data" * 1024)
    (bench.source / "dense").write_bytes(b"x" * 10_000)
    with bench.mounted_source() as mounted:
        for name in ("sparse", "dense"):
            with open(bench.source / name, "rb") as want, open(mounted / name, "rb") as got:
                for offset in (0, 1, 5000, 2 << 20, (2 << 20) + 4095, (2 << 20) + 4096):
                    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                        assert _seek(got.fileno(), offset, whence) == _seek(want.fileno(), offset, whence)
        copy = bench.root / "copy"
        subprocess.run(["cp", "--sparse=auto", mounted / "sparse", copy], check=True)
        assert copy.read_bytes() == (bench.source / "sparse").read_bytes()
        assert copy.stat().st_blocks * 512 < 1 << 20


def _seek(descriptor: int, offset: int, whence: int) -> int | str:
    try:
        return os.lseek(descriptor, offset, whence)
    except OSError as error:
        return os.strerror(error.errno or 0)


_UNPRIVILEGED = """
import os, sys
from pathlib import Path
from tests.bench.drive_ceiling import load, serve_ours
from mount.fuse_session import Counters, Session
from tests.bench.drive_ceiling import InMemory
drive = InMemory(load(Path(sys.argv[1]), 1 << 20, 0))
# Only now: the interpreter may be where others cannot go.
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
def fault(opcode, node, error):
    raise error
Session(drive.operations, fault, drive.flags, Counters()).serve(
    sys.argv[2], lambda: print("ready", flush=True), allow_other=False)
"""


@pytest.fixture
def open_device() -> Iterator[None]:
    """The device as distributions have it: for everybody."""
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(mode | 0o666)
    yield
    device.chmod(mode)


@pytest.mark.root
@pytest.mark.usefixtures("open_device")
def test_a_user_without_rights_mounts_through_the_helper() -> None:
    reading = "import os,sys; os.setgid(65534); os.setuid(65534); print(len(open(sys.argv[1],'rb').read()))"
    with tempfile.TemporaryDirectory() as name:  # nobody may enter the directories that pytest makes
        place = Path(name).resolve()
        source, target = place / "tree", place / "drive"
        write_files(source, {"file": b"x" * 1000})
        target.mkdir()
        place.chmod(0o755)
        os.chown(target, _NOBODY, _NOBODY)
        command: list[str | Path] = [sys.executable, "-c", _UNPRIVILEGED, source, target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as served:
            try:
                assert served.stdout is not None
                assert served.stdout.readline() == "ready\n"
                count_mount(target)
                assert os.fspath(target) in drives.mounted_targets()
                with pytest.raises(PermissionError):
                    os.listdir(target)  # not even root, unless they let others in
                assert _run(reading, target / "tree" / "file") == "1000\n"
            finally:
                served.terminate()
            assert served.wait(20) == 0
        assert target not in fuse_mounts()


_READ_ON = """
import os, random, sys
names = [os.path.join(sys.argv[1], name) for name in os.listdir(sys.argv[1])]
print("reading", flush=True)
while True:
    try:
        with open(random.choice(names), "rb") as file:
            file.read()
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        break
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drive_told_to_stop_under_load_leaves_nothing(bench: Bench, number: signal.Signals) -> None:
    make = random.Random(7)
    for name in range(20):
        (bench.source / f"file {name}").write_bytes(make.randbytes(300_000))
    target = bench.root / "drive"
    drives.start(bench.request(bench.backup(), target, cache_bytes=1 << 20))
    count_mount(target)
    command: list[str | Path] = [sys.executable, "-c", _READ_ON, inside(target, bench.source)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        kill(bench, target, number)
        assert target not in fuse_mounts()
        for reader in readers:
            assert reader.wait(20) == 0
    finally:
        for reader in readers:
            reader.kill()
            assert reader.stdout is not None
            reader.stdout.close()
            reader.wait()
    assert drives.list_drives(bench.records) == [] and not target.exists()


_DIRECT_READ = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("reading", flush=True)
os.preadv(descriptor, [mmap.mmap(-1, 1 << 20)], 4 << 20)
"""


def test_a_vault_that_hangs_holds_up_only_those_who_read_there(bench: Bench) -> None:
    make = random.Random(8)
    (bench.source / "works").write_bytes(make.randbytes(100_000))
    (bench.source / "hangs").write_bytes(make.randbytes(6_000_000))
    target = bench.root / "drive"
    drives.start(bench.request(bench.backup(), target, cache_bytes=1 << 20))
    count_mount(target)
    mounted = inside(target, bench.source)
    assert len(os.listdir(mounted)) == 2
    assert (mounted / "works").read_bytes() == (bench.source / "works").read_bytes()
    for pack in (bench.vault / "repositories").glob("*/data/*/*"):
        pack.unlink()
        os.mkfifo(pack)  # opening it waits for a writer
    command: list[str | Path] = [sys.executable, "-c", _DIRECT_READ, mounted / "hangs"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        time.sleep(0.3)
        assert reader.poll() is None
        assert _run("import os,sys; print(os.stat(sys.argv[1]).st_size)", mounted / "works") == "100000\n"
        assert _run("import os,sys; print(os.statvfs(sys.argv[1]).f_bfree)", mounted) == "0\n"
        assert _run("import os,sys; print(os.path.exists(sys.argv[1]))", mounted / "none") == "False\n"
        reader.kill()
        try:
            assert reader.wait(10) == -signal.SIGKILL  # who is killed does not wait for the vault
        finally:
            kill(bench, target, signal.SIGTERM)
    assert target not in fuse_mounts()
