"""What only a directory can suffer: kills, full and read-only disks, disks that go away."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cas
from cas.errors import (
    BackdriveError,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    VaultMissing,
    VaultReadOnly,
    VaultUnavailable,
)
from cas.vault.base import VaultEntry
from cas.vault.local import LocalVault

POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="POSIX calls")
OLD = 25 * 3600  # seconds


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def vault(root: Path) -> LocalVault:
    return LocalVault.create(str(root), b"{}")


@contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[None]:
    """A small file system of its own at `directory`. Needs root; where even root may not mount, only CI minds."""
    directory.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=False, capture_output=True)


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def temporaries(root: Path) -> list[str]:
    return sorted(os.listdir(root / "tmp"))


def stored(vault: LocalVault) -> list[VaultEntry]:
    return sorted(entry for entry in vault.list("") if entry.name != "vault.json")


# --- kills ----------------------------------------------------------------------------------------------------------

WRITER = """
import hashlib, os, sys, threading
from cas.vault.local import LocalVault

def write(thread):
    vault = LocalVault(sys.argv[1])
    for number in range(10**6):
        name = f"packs/{thread}{number % 10}/{sys.argv[2]}-{number}"
        content = hashlib.shake_256(name.encode()).digest(200_000)
        vault.put(name, [content[:10], content[10:150_000], content[150_000:]])
        os.write(1, (name + "\\n").encode())

for thread in "ab":
    threading.Thread(target=write, args=thread).start()
"""


@POSIX_ONLY
def test_a_killed_writer_leaves_whole_objects_only(vault: LocalVault, root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(cas.__file__))}
    acknowledged: set[str] = set()
    for run in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), str(run)], stdout=subprocess.PIPE, text=True, env=environment
        ) as writer:
            assert writer.stdout is not None
            for _ in range(4):
                acknowledged.add(writer.stdout.readline().strip())
            time.sleep(0.0007 * run)  # to be killed at another step of a put each time
            writer.kill()
            acknowledged.update(line.strip() for line in writer.stdout if line.endswith("\n"))

    entries = stored(vault)
    assert acknowledged and acknowledged <= {entry.name for entry in entries}
    for name, size in entries:
        assert size == 200_000
        assert vault.get(name) == hashlib.shake_256(name.encode()).digest(size), name

    # What the kills left in tmp goes with the first put of a writer a day later.
    young = root / "tmp" / f"{os.getpid()}-0123456789abcdef"
    foreign = root / "tmp" / "notes.txt"
    for name in temporaries(root):
        os.utime(root / "tmp" / name, (time.time() - OLD,) * 2)
    young.touch()
    foreign.touch()
    os.utime(foreign, (0, 0))
    LocalVault.open(str(root)).put("packs/later", [b"x"])
    assert temporaries(root) == sorted([young.name, foreign.name])


# --- read-only, full, gone ------------------------------------------------------------------------------------------


def check_read_only(vault: LocalVault, root: Path) -> None:
    before = temporaries(root)
    writes: list[Callable[[], None]] = [
        lambda: vault.put("packs/ab/new", [b"x"]),
        lambda: vault.put("packs/zz/new", [b"x"]),
        lambda: LocalVault.open(str(root)).put("packs/ab/new", [b"x"]),
        lambda: vault.delete("packs/ab/old"),
    ]
    for write in writes:
        with pytest.raises(VaultReadOnly) as caught:
            write()
        assert caught.value.url == vault.url
    assert temporaries(root) == before
    assert LocalVault.open(str(root)).get("packs/ab/old") == b"old"
    assert stored(vault) == [("packs/ab/old", 3)]
    with pytest.raises(ObjectMissing):
        vault.get("packs/ab/new")


@POSIX_ONLY
def test_a_read_only_vault_can_be_read(tmp_path: Path) -> None:
    if is_root():  # whom permission bits do not bind
        with tmpfs(tmp_path / "disk", "size=1m"):
            root = tmp_path / "disk" / "vault"
            vault = LocalVault.create(str(root), b"{}")
            vault.put("packs/ab/old", [b"old"])
            subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
            check_read_only(vault, root)
            with pytest.raises(VaultReadOnly):
                LocalVault.create(str(tmp_path / "disk" / "other"), b"{}")
        return
    root = tmp_path / "vault"
    vault = LocalVault.create(str(root), b"{}")
    vault.put("packs/ab/old", [b"old"])
    directories = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    for directory in directories:
        directory.chmod(0o555)
    try:
        check_read_only(vault, root)
        with pytest.raises(VaultReadOnly):
            LocalVault.create(str(root / "packs" / "other"), b"{}")
    finally:
        for directory in directories:
            directory.chmod(0o755)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_what_cannot_be_read_is_unavailable_and_not_missing(
    vault: LocalVault, root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    vault.put("packs/ab", [b"x"])
    with monkeypatch.context() as patch:
        for call in ("open", "stat", "scandir"):
            patch.setattr(os, call, refuse)
        for read in (
            lambda: vault.get("packs/ab"),
            lambda: vault.size("packs/ab"),
            lambda: stored(vault),
            lambda: LocalVault.open(str(root)),
        ):
            with pytest.raises(VaultUnavailable) as caught:
                read()
            assert os.strerror(code) in str(caught.value)
    assert vault.get("packs/ab") == b"x"


@POSIX_ONLY
@pytest.mark.root  # without it, every step that can find the disk full is made to below
def test_a_full_disk_keeps_what_it_holds(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m"):
        root = tmp_path / "disk" / "vault"
        vault = LocalVault.create(str(root), b"{}")
        vault.put("packs/first", [b"1" * 500_000])
        for _ in range(2):
            with pytest.raises(NoSpace) as caught:
                vault.put("packs/second", [b"2" * 100_000] * 7)
            assert (caught.value.where, caught.value.path) == ("vault", str(root))
            assert temporaries(root) == []
            assert stored(vault) == [("packs/first", 500_000)]
        vault.delete("packs/first")
        vault.put("packs/second", [b"2" * 100_000] * 7)
        assert stored(vault) == [("packs/second", 700_000)]


@POSIX_ONLY
@pytest.mark.root  # without it, an emptied directory stands for the mount point below
def test_nothing_is_written_where_the_disk_is_away(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with tmpfs(disk, "size=1m"):
        vault = LocalVault.create(str(disk), b"{}")
        vault.put("packs/ab/cd", [b"x"])
    check_gone(vault)
    assert os.listdir(disk) == []


def check_gone(vault: LocalVault) -> None:
    for call in (
        lambda: vault.get("packs/ab/cd"),
        lambda: vault.get("vault.json"),
        lambda: vault.size("packs/ab/cd"),
        lambda: stored(vault),
        lambda: [*vault.list("packs/")],
        lambda: [*vault.list("none/")],
        lambda: vault.put("packs/ab/cd", [b"x"]),
        lambda: vault.put("packs/ab/new", [b"x"]),
        lambda: vault.delete("packs/ab/cd"),
        lambda: LocalVault(vault._root).put("packs/ab/new", [b"x"]),
        lambda: LocalVault.open(vault._root),
    ):
        with pytest.raises(VaultMissing) as caught:
            call()
        assert caught.value.url == vault.url


def make_absent(root: Path) -> None:
    shutil.rmtree(root)


def make_empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def make_file(root: Path) -> None:
    shutil.rmtree(root)
    root.touch()


@pytest.mark.parametrize("go", [make_absent, make_empty, make_file])
def test_a_vault_that_went_away_is_missing_as_a_whole(
    vault: LocalVault, root: Path, go: Callable[[Path], None]
) -> None:
    vault.put("packs/ab/cd", [b"x"])
    go(root)
    check_gone(vault)
    assert not root.is_dir() or os.listdir(root) == []


def test_without_its_header_a_vault_is_missing(vault: LocalVault, root: Path) -> None:
    vault.put("packs/ab/cd", [b"x"])
    (root / "vault.json").unlink()
    for read in (lambda: vault.get("packs/ab/other"), lambda: stored(vault), lambda: vault.delete("packs/ab/other")):
        with pytest.raises(VaultMissing):
            read()


def test_a_lost_directory_is_made_again(vault: LocalVault, root: Path) -> None:
    vault.put("packs/ab/cd", [b"x"])
    shutil.rmtree(root / "packs")
    shutil.rmtree(root / "tmp")
    vault.put("packs/ab/ef", [b"y"])
    assert stored(vault) == [("packs/ab/ef", 1)]
    assert temporaries(root) == []


# --- every step of a put, failing -----------------------------------------------------------------------------------


@POSIX_ONLY
@pytest.mark.parametrize("step", ["open", "write", "second write", "fsync", "link", "mkdir", "directory fsync"])
@pytest.mark.parametrize(
    "code, kind",
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EROFS, VaultReadOnly),
        (errno.EACCES, VaultReadOnly),
        (errno.EIO, VaultUnavailable),
        (errno.ESTALE, VaultUnavailable),
    ],
)
def test_a_failing_step_leaves_nothing_behind(
    vault: LocalVault, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, kind: type[BackdriveError]
) -> None:
    vault.put("packs/first", [b"1"])
    call, skip = {"second write": ("write", 1), "directory fsync": ("fsync", 2)}.get(step, (step, 0))
    real = getattr(os, call)
    seen = 0

    def fail(*arguments: object, **options: object) -> object:
        nonlocal seen
        seen += 1
        if seen == skip + 1:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    name = "packs/new/second" if step in ("mkdir", "directory fsync") else "packs/second"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind) as caught:
            vault.put(name, [b"2" * 1000, b"3" * 1000])
    assert seen > skip
    if isinstance(caught.value, VaultUnavailable):
        assert os.strerror(code) in str(caught.value) and name in str(caught.value)
    assert temporaries(root) == []
    # After the link the object is there, whole: the outcome was unknown, and the retry below finds it.
    assert {entry.name: entry.size for entry in stored(vault)}.get(name, 2000) == 2000
    vault.put(name, [b"2" * 1000, b"3" * 1000])
    assert vault.get(name) == b"2" * 1000 + b"3" * 1000
    assert temporaries(root) == []


@POSIX_ONLY
def test_interrupting_a_put_leaves_nothing_behind(
    vault: LocalVault, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vault.put("object", [b"x"])
    assert (temporaries(root), stored(vault)) == ([], [])


# --- how it is done -------------------------------------------------------------------------------------------------


@POSIX_ONLY
def test_content_is_durable_before_its_name_and_the_name_before_put_returns(
    vault: LocalVault, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, link, mkdir, unlink = os.fsync, os.link, os.mkdir, os.unlink

    def where(path: str) -> str:
        return os.path.relpath(path, root).replace(str(os.getpid()), "PID")

    def logged_fsync(fd: int) -> None:
        log.append("sync " + where(os.readlink(f"/proc/self/fd/{fd}")).split("-")[0])
        fsync(fd)

    def logged_link(source: str, target: str) -> None:
        log.append("link " + where(target))
        link(source, target)

    def logged_mkdir(path: str) -> None:
        log.append("mkdir " + where(path))
        mkdir(path)

    def logged_unlink(path: str) -> None:
        log.append("unlink " + where(path).split("-")[0])
        unlink(path)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "link", logged_link)
    monkeypatch.setattr(os, "mkdir", logged_mkdir)
    monkeypatch.setattr(os, "unlink", logged_unlink)

    vault.put("packs/ab/cd", [b"x"])
    assert log == [
        *("mkdir packs", "sync .", "mkdir packs/ab", "sync packs"),
        *("sync tmp/PID", "link packs/ab/cd", "sync packs/ab", "unlink tmp/PID"),
    ]
    log.clear()
    vault.put("packs/ab/ef", [b"x"])  # directories are remembered
    assert log == ["sync tmp/PID", "link packs/ab/ef", "sync packs/ab", "unlink tmp/PID"]

    # An object or a directory that is there already need not be durable yet.
    log.clear()
    LocalVault.open(str(root)).put("packs/ab/ef", [b"x"])
    assert [step for step in log if "sync" in step] == [
        *("sync .", "sync .", "sync packs", "sync tmp/PID", "sync packs/ab")
    ]


@POSIX_ONLY
def test_short_reads_and_writes_go_on(vault: LocalVault, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pread = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 7), offset))
    content = bytes(range(100))
    vault.put("object", [content[:50], content[50:]])
    vault.put("object", [content])
    assert vault.get("object") == content
    assert vault.get("object", 1, 98) == content[1:99]
    with pytest.raises(ObjectExists):
        vault.put("object", [content[:-1], b"x"])


def test_what_is_no_object_is_not_listed(vault: LocalVault, root: Path) -> None:
    vault.put("packs/ab", [b"x"])
    for foreign in ("tmp/123-0123456789abcdef", "packs/with space", "lost+found/x", "packs/é"):
        path = root / foreign
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (root / "empty").mkdir()
    (root / "dangling").symlink_to("nowhere")
    assert stored(vault) == [("packs/ab", 1)]


def test_a_name_cannot_be_an_object_and_a_directory(vault: LocalVault, root: Path) -> None:
    vault.put("packs/ab", [b"x"])
    for taken in ("packs", "packs/ab/cd", "packs/ab/cd/ef"):
        with pytest.raises(ObjectExists):
            vault.put(taken, [b"y"])
    for absent in ("packs", "packs/ab/cd"):
        with pytest.raises(ObjectMissing):
            vault.size(absent)
    assert stored(vault) == [("packs/ab", 1)]
    assert temporaries(root) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to count descriptors")
def test_no_descriptor_is_left_open(vault: LocalVault) -> None:
    def use() -> None:
        vault.put("packs/ab", [b"x"])
        vault.get("packs/ab")
        next(vault.list(""))
        for failing in (lambda: vault.put("packs/ab", [b"y"]), lambda: vault.get("packs")):
            with pytest.raises(BackdriveError):
                failing()

    use()
    before = len(os.listdir("/proc/self/fd"))
    use()
    assert len(os.listdir("/proc/self/fd")) == before
