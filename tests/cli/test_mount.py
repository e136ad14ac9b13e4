"""`backdrive mount`, `unmount` and `mounts` as a person types them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.terminal import words
from tests.conftest import ROOT, RunCli, fuse_mounts
from tests.integration.drive_bench import wait_for

pytestmark = pytest.mark.fuse

Count = Callable[[Path | None], None]


def test_a_point_as_a_drive(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count) -> None:
    drive = tmp_path / "drive"
    assert run_cli("mounts", "--json", expect=0).json == []
    done = run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    assert str(drive) in done.stdout
    assert Path(f"{drive}{tree}/a.txt").read_text() == "the first\n"
    (found,) = run_cli("mounts", "--json", expect=0).json
    assert (found["target"], found["point"], found["vault"], found["alive"]) == (str(drive), point, "vault", True)
    assert point[:8] in run_cli("mounts", expect=0).stdout
    run_cli("mount", drive, expect=13)
    run_cli("unmount", "drive", expect=0, cwd=tmp_path)
    assert drive not in fuse_mounts()
    assert run_cli("mounts", "--json", expect=0).json == []


def test_all_points_as_a_drive(run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    run_cli("mount", drive, expect=0)
    count_mount(drive)
    assert sorted(path.name for path in (drive / "laptop").iterdir())[-1] == "latest"
    assert Path(f"{drive}/laptop/latest{tree}/sub/b.txt").read_text() == "the second\n"
    assert "all points" in run_cli("mounts", expect=0).stdout
    run_cli("unmount", drive, expect=0)
    assert drive.is_dir()


def test_a_drive_whose_process_died_is_cleaned_up(
    run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    os.kill(run_cli("mounts", "--json", expect=0).json[0]["pid"], signal.SIGKILL)
    time.sleep(0.2)
    assert run_cli("mounts", "--json", expect=0).json[0]["alive"] is False
    assert "dead" in run_cli("mounts", expect=0).stdout
    run_cli("unmount", drive, expect=0)
    assert drive not in fuse_mounts()


def test_a_drive_whose_process_hangs_is_cleaned_up_and_knew_no_passphrase(
    run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = tmp_path / "drive"
    monkeypatch.setenv("BACKDRIVE_NEW_PASSPHRASE", "never to be handed on")
    run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    pid = run_cli("mounts", "--json", expect=0).json[0]["pid"]
    assert b"PASSPHRASE" not in Path(f"/proc/{pid}/environ").read_bytes()
    os.kill(pid, signal.SIGSTOP)
    run_cli("unmount", drive, expect=0)
    assert drive not in fuse_mounts()
    deadline = time.monotonic() + 10  # it was killed, which takes a moment
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_drive_in_the_foreground(
    run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count, stop: signal.Signals
) -> None:
    drive = tmp_path / "drive"
    command = [sys.executable, "-m", "cli.main", "mount", "latest", str(drive), "--foreground"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while drive not in fuse_mounts() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        count_mount(drive)
        assert Path(f"{drive}{tree}/a.txt").read_text() == "the first\n"
        process.send_signal(stop)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert drive not in fuse_mounts()


def test_drives_that_cannot_be(run_cli: RunCli, point: str, tmp_path: Path) -> None:
    run_cli("unmount", tmp_path, expect=13)
    (tmp_path / "file").touch()
    run_cli("mount", tmp_path / "file", expect=13)
    run_cli("mount", "none", tmp_path / "drive", expect=11)
    assert not (tmp_path / "drive").exists()


def test_a_folder_of_a_point_as_a_drive(
    run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    started = run_cli("points", "--json", expect=0).json[0]["time"]  # has colons of its own
    for text in (f"latest:{tree}/sub", f"{started}:{tree}//./sub/", f"{point[:8]}:{tree}/../{tree.name}/sub"):
        run_cli("mount", text, drive, expect=0)
        count_mount(drive)
        assert sorted(path.name for path in drive.iterdir()) == ["b.txt", "link"]
        assert (drive / "link").read_text() == "the second\n"
        found, own = os.stat(drive), (tree / "sub").stat()
        assert (found.st_mtime_ns, found.st_mode) == (own.st_mtime_ns, own.st_mode)
        assert os.statvfs(drive).f_files >= 5  # of the whole point
        (listed,) = run_cli("mounts", "--json", expect=0).json
        assert (listed["point"], listed["shows"]) == (point, f"{tree}/sub")
        assert f"{point[:8]}:{tree}/sub" in run_cli("mounts", expect=0).stdout
        run_cli("unmount", drive, expect=0)
    for text, code, told in (
        (f"latest:{tree}/a.txt", 13, "is no directory"),
        (f"latest:{tree}/sub/link", 13, "is no directory"),
        (f"latest:{tree}/none", 11, "is not in the recovery point"),
        ("none:/", 11, "No recovery point"),
    ):
        assert told in words(run_cli("mount", text, drive, expect=code).stderr)
        assert not drive.exists() and drive not in fuse_mounts()


def test_a_choice_of_all_points_as_a_drive(
    run_cli: RunCli, tree: Path, vault: Path, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    points = [run_cli("backup", tree, "--tag", "n=1", "--json", expect=0).json["point"]]
    points.append(run_cli("backup", tree / "sub", "--tag", "n=2", "--tag", "more=x", "--json", expect=0).json["point"])

    def shown(*arguments: str | Path) -> int:
        run_cli("mount", drive, *arguments, expect=0)
        count_mount(drive)
        found = list(drive.glob("@GMT-*" if "gmt" in arguments else "laptop/2*"))
        assert all(Path(f"{path}{tree}/sub/b.txt").read_text() == "the second\n" for path in found)
        told = run_cli("mounts", expect=0).stdout
        assert all(str(argument) in told for argument in arguments[1::2])
        run_cli("unmount", drive, expect=0)
        return len(found)

    assert shown("--machine", "laptop") == 2
    assert shown("--path", tree) == 1
    assert shown("--path", tree / "sub") == 2
    assert shown("--tag", "n=2", "--tag", "more=x") == 1
    assert shown("--tag", "n=1", "--tag", "more=x") == 0
    assert shown("--since", "1h", "--layout", "gmt", "--machine", "laptop") == 2
    assert shown("--since", "2999") == 0
    noted = words(run_cli("mount", drive, "--machine", "no\nbody", expect=0).stderr)
    assert r"No machine named 'no\x0abody' has recovery points yet. Those that have: laptop." in noted
    assert "no recovery point yet" in noted
    run_cli("unmount", drive, expect=0)
    noted = run_cli("mount", drive, "--machine", "laptop", "--since", "2999", expect=0).stderr
    assert "no recovery point yet" in noted and "No machine named" not in noted
    run_cli("unmount", drive, expect=0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("latest", "--layout", "gmt"),
        ("latest", "--layout", "time"),
        ("latest", "--machine", "laptop"),
        ("latest", "--path", "/"),
        ("latest", "--since", "1d"),
        ("latest", "--tag", "a=b"),
        ("--since", "1 fortnight"),
        ("--tag", "novalue"),
        ("--layout", "flat"),
        ("--cache-size", "much"),
        ("--cache-size", "1M"),
        ("--cache-size", "900T"),
        ("--machine", ""),
        ("--machine", " "),
        ("--path", ""),
        ("--path", "srv/projects"),
        ("--disk-cache", "1G:"),
        ("--disk-cache", "/var/cache"),
        ("--uid", "no such user"),
        ("--gid", "4294967295"),
        ("--umask", "1777"),
        ("--umask", "0o22"),
    ],
)
def test_options_that_cannot_be(run_cli: RunCli, home: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run_cli("mount", *arguments, tmp_path / "drive", expect=2).stderr
    assert not (tmp_path / "drive").exists()


def test_targets_that_cannot_be(run_cli: RunCli, point: str, vault: Path, home: Path) -> None:
    for target, told in (
        ("/proc/self/cwd", "belongs to the system"),
        ("/sys/fs", "belongs to the system"),
        ("/", "belongs to the system"),
        (vault, "would hide"),
        (vault.parent, "would hide"),
        (home / "cache", "would hide"),
    ):
        done = run_cli("mount", "latest", target, expect=13, cwd=Path("/proc"))
        assert told in words(done.stderr)
    assert run_cli("points", "--json", expect=0).json


def test_a_drive_tells_what_it_does(
    run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    run_cli("mount", "latest", drive, "--cache-size", "64M", expect=0)
    count_mount(drive)

    def told() -> dict[str, int]:
        (found,) = run_cli("mounts", "--json", expect=0).json
        return {name: found[name] for name in ("requests", "reads", "read_bytes", "errors", "cache_misses")}

    size = len(Path(f"{drive}{tree}/a.txt").read_bytes())
    wait_for(lambda: told()["reads"] >= 1)
    before = told()
    assert before["read_bytes"] == size and before["errors"] == 0 and before["requests"] > before["reads"]
    assert before["cache_misses"] >= 1
    (found,) = run_cli("mounts", expect=0).stdout.splitlines()[1:]
    assert f"{size} B" in found
    for path in (tmp_path / "home" / "drives").glob("*.counters"):
        path.write_bytes(b"{")
    assert run_cli("mounts", "--json", expect=0).json[0]["reads"] is None
    run_cli("mounts", expect=0)
    run_cli("unmount", drive, expect=0)
    assert list((tmp_path / "home" / "drives").iterdir()) == []


def test_a_terminal_that_closes_closes_its_drive(
    run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    command = [sys.executable, "-m", "cli.main", "mount", "latest", str(drive), "--foreground"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: drive in fuse_mounts() or process.poll() is not None)
        count_mount(drive)
        wait_for(lambda: run_cli("mounts", "--json", expect=0).json != [])
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert drive not in fuse_mounts() and not drive.exists()


def test_a_drive_in_the_background_outlives_its_terminal(
    run_cli: RunCli, tree: Path, point: str, tmp_path: Path, count_mount: Count
) -> None:
    drive = tmp_path / "drive"
    run_cli("mount", "latest", drive, expect=0)
    count_mount(drive)
    pid = run_cli("mounts", "--json", expect=0).json[0]["pid"]
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.2)
    assert Path(f"{drive}{tree}/a.txt").read_text() == "the first\n"
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: drive not in fuse_mounts() and not drive.exists())
    assert run_cli("mounts", "--json", expect=0).json == []


_NO_DEVICE = """
mount -t tmpfs -o nodev tmpfs "$1" && mknod -m 666 "$1/fuse" c 10 229 && mount --bind "$1/fuse" /dev/fuse
shift; exec "$@"
"""


@pytest.mark.root
def test_a_device_that_cannot_be_opened_is_the_reason(run_cli: RunCli, point: str, tmp_path: Path) -> None:
    place = tmp_path / "dev"
    place.mkdir()
    command = [sys.executable, "-m", "cli.main", "mount", "latest", str(tmp_path / "drive")]
    shell = ["unshare", "--mount", "sh", "-c", _NO_DEVICE, "sh", str(place), *command]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 13
    assert "/dev/fuse cannot be opened: Permission denied." in words(done.stderr)
    assert not (tmp_path / "drive").exists()


@pytest.mark.root
def test_files_of_another_machine_for_a_user_of_this_one(
    run_cli: RunCli, tree: Path, vault: Path, tmp_path: Path, count_mount: Count
) -> None:
    os.chown(tree / "a.txt", 54321, 54321)
    (tree / "a.txt").chmod(0o600)
    run_cli("backup", tree, expect=0)
    drive = tmp_path / "drive"
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    code = "import os, sys; os.setgid(4711); os.setuid(4711); print(open(sys.argv[1]).read())"
    reading = [sys.executable, "-c", code, f"{drive}{tree}/a.txt"]
    for given, allowed, owner, mode in (
        (["--uid", "4711", "--gid", "users", "--umask", "027"], True, 4711, 0o600),
        (["--umask", "0"], False, 54321, 0o600),
        (["--uid", "4711", "--no-allow-other"], False, 4711, 0o600),
        (["--umask", "177"], False, 54321, 0o600),
    ):
        run_cli("mount", "latest", drive, *given, expect=0)
        count_mount(drive)
        found = os.stat(f"{drive}{tree}/a.txt")
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (owner, mode)
        assert (subprocess.run(reading, capture_output=True, check=False).returncode == 0) is allowed, given
        run_cli("unmount", drive, expect=0)


@pytest.mark.root
def test_who_may_not_let_others_in_is_told(run_cli: RunCli, point: str, tmp_path: Path) -> None:
    """As another user, on a system whose /etc/fuse.conf does not allow it."""
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n")
    code = """
import os, sys
from pathlib import Path
from mount import serve
serve._FUSE_CONF = Path(sys.argv[1])
os.seteuid(4711)
serve._check_sharing(False)
serve._check_sharing(True)
"""
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o055)
    command = [sys.executable, "-c", code, str(tmp_path / "fuse.conf")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "MountFailed: Only root may let other users into a drive here" in done.stderr
    (tmp_path / "fuse.conf").write_text("mount_max = 10\nuser_allow_other\n")
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_a_cache_on_disk(
    run_cli: RunCli, tree: Path, vault: Path, tmp_path: Path, home: Path, count_mount: Count
) -> None:
    (tree / "large").write_bytes(os.urandom(3 << 20))
    run_cli("backup", tree, expect=0)
    drive = tmp_path / "drive"
    (cache,) = [path for path in (home / "cache").iterdir() if path.is_dir()]
    for given, place in (("64M", cache / "vault"), (f"64M:{tmp_path}/pieces", tmp_path / "pieces")):
        run_cli("mount", "latest", drive, "--disk-cache", given, expect=0)
        count_mount(drive)
        assert Path(f"{drive}{tree}/large").read_bytes() == (tree / "large").read_bytes()
        assert sum(path.stat().st_size for path in place.rglob("*")) > 1 << 20
        run_cli("unmount", drive, expect=0)
    refused = run_cli("mount", "latest", drive, "--disk-cache", f"64M:{drive}/x", expect=13)
    assert "would hide" in words(refused.stderr)
    for place, reason in ((tree / "a.txt", "it is not a directory"), (tree / "a.txt" / "x", "Not a directory")):
        refused = run_cli("mount", "latest", drive, "--disk-cache", f"64M:{place}", expect=13)
        assert f"cannot be kept in {place}: {reason}" in words(refused.stderr)
        assert not drive.exists() and drive not in fuse_mounts()


def test_odd_names_are_told_as_escapes(run_cli: RunCli, point: str, tmp_path: Path, count_mount: Count) -> None:
    drive = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\x1b[31m\nb\xff"))
    shown = rf"{tmp_path}/a\x1b[31m\x0ab\xff"
    assert f"open at {shown}." in run_cli("mount", "latest", drive, expect=0).stdout
    count_mount(drive)
    assert shown in run_cli("mounts", expect=0).stdout
    assert f"{shown} is a drive already" in words(run_cli("mount", "latest", drive, expect=13).stderr)
    assert f"at {shown} is closed" in run_cli("unmount", drive, expect=0).stdout
    assert f"no drive at {shown}" in words(run_cli("unmount", drive, expect=13).stderr)
    log = (tmp_path / "home" / "logs" / "drives.log").read_text()
    assert shown in log and all(line[:2] == "20" for line in log.splitlines())


def test_a_collect_takes_nothing_of_a_point_that_a_drive_was_in(
    run_cli: RunCli, tree: Path, vault: Path, tmp_path: Path, count_mount: Count
) -> None:
    data = os.urandom(4 << 20)
    (tree / "only then").write_bytes(data)
    point = str(run_cli("backup", tree, "--json", expect=0).json["point"]["id"])
    (tree / "only then").unlink()
    run_cli("backup", tree, expect=0)
    drive = tmp_path / "drive"
    run_cli("mount", drive, expect=0)
    count_mount(drive)
    (place,) = drive.glob(f"laptop/2*{tree}/only then")

    def stored() -> int:
        return sum(path.stat().st_size for path in vault.rglob("*") if path.is_file())

    def collect() -> None:
        run_cli("collect", "--grace", "0", "--max-unused", "0", expect=0)

    with open(place, "rb", buffering=0) as opened:
        assert opened.read(1000) == data[:1000]
        run_cli("points", "delete", point, "--purge-now", "--yes-purge", point[:8], expect=0)
        wait_for(lambda: not place.exists())
        assert len(list((drive / "laptop").iterdir())) == 2
        collect()
        assert stored() > len(data)
        assert opened.read() == data[1000:]
    assert run_cli("mounts", "--json", expect=0).json[0]["errors"] == 0
    run_cli("unmount", drive, expect=0)
    collect()
    assert stored() < len(data)
