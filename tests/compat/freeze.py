"""Makes a frozen vault: `python -m tests.compat.freeze DIRECTORY`, as root. Done once for each format version.

The result is what `test_frozen_vaults.py` restores for ever: a vault with two points, and beside it `expected.json`,
which tells of every entry of both points what a program that knows nothing of backdrive saw in the source.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.compat.vectors import stream

PASSPHRASE = "frozen in November of 2026"
_COMMAND = [sys.executable, "-m", "cli.main"]


def describe(root: Path) -> dict[str, dict[str, Any]]:
    """Every entry below `root`, by its relative path with other than printable ASCII escaped."""
    entries: dict[str, dict[str, Any]] = {}
    for folder, directories, names in os.walk(os.fsencode(root)):
        for name in directories + names:
            path = os.path.join(folder, name)
            entries[escape(os.path.relpath(path, os.fsencode(root)))] = _entry(path)
    return entries


def escape(path: bytes) -> str:
    """Printable whatever it holds, and never ambiguous."""
    return path.decode("latin-1").encode("unicode_escape").decode()


def _entry(path: bytes) -> dict[str, Any]:
    st = os.lstat(path)
    entry: dict[str, Any] = {
        "mode": oct(st.st_mode),
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime": st.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
    }
    if stat.S_ISREG(st.st_mode):
        entry |= {"size": st.st_size, "links": st.st_nlink}
        entry["sha256"] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
    if stat.S_ISLNK(st.st_mode):
        entry["target"] = escape(os.readlink(path))
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        entry["device"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    return entry


def _enrich(server: Path) -> None:
    """What the sample server lacks: long files with content lists, a paged directory, a device, trusted attributes."""
    (server / "long.txt").write_bytes(b"".join(b"line %09d of a long file\n" % number for number in range(40_000)))
    (server / "dense.bin").write_bytes(stream(400_000))
    many = server / "many"
    many.mkdir()
    for number in range(1500):
        (many / f"{number:05}").touch()
        os.utime(many / f"{number:05}", ns=(0, 1_600_000_000_000_000_000 + number))
    os.mknod(server / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (server / "holes").open("wb") as file:
        file.write(b"start")
        file.seek(1 << 20)
        file.write(b"end")
    os.chown(server / "long.txt", 12345, 54321)


def freeze(directory: Path) -> None:
    """Make the vault and `expected.json` in `directory`."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as place:
        server = Path(place) / "server"
        environment = {
            **os.environ,
            "BACKDRIVE_HOME": str(Path(place) / "home"),
            "BACKDRIVE_PASSPHRASE": PASSPHRASE,
            "PYTHONPATH": str(root),
        }

        def run(*command: str) -> None:
            subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)

        run(sys.executable, str(root / "fixtures" / "make_server.py"), str(server))
        _enrich(server)
        vault = directory / "vault"
        shutil.rmtree(directory, ignore_errors=True)
        run(*_COMMAND, "vault", "create", str(vault))
        run(*_COMMAND, "register", str(vault), "--machine", "frozen")
        expected = []
        for change in (False, True):
            if change:
                run(sys.executable, str(root / "fixtures" / "make_server.py"), "--change", str(server))
            run(*_COMMAND, "backup", str(server))
            expected.append(describe(server))
        contents = {"root": str(server), "passphrase": PASSPHRASE, "points": expected}
        (directory / "expected.json").write_text(json.dumps(contents, indent=0, sort_keys=True))


if __name__ == "__main__":
    freeze(Path(sys.argv[1]))
