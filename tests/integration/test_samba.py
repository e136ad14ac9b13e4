"""A gmt drive behind a real smbd: a live share whose files have previous versions, as Windows shows them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunCli
from tests.engine import write_files
from tests.integration.drive_bench import wait_for
from tests.integration.samba import Samba, samba

pytestmark = pytest.mark.fuse

_NAME = "@GMT-%Y.%m.%d-%H.%M.%S"
_GMT = re.compile(r"^(@GMT-[0-9.-]+)\ncreate_time:", re.MULTILINE)  # without a time, the file was not in the point


def documented_share() -> str:
    """The share that the README shows."""
    found = re.search(r"```ini\n(\[projects\]\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None, "the README shows no share"
    return found[1]


def _versions(server: Samba, name: str) -> list[str]:
    """The previous versions that there are of a file, as smbclient lists them."""
    done = server.try_to("projects", f'allinfo "{name}"')  # fails where some version of the share lacks the file
    return _GMT.findall(done.stdout)


def _get(server: Samba, version: str, name: str, place: Path) -> bytes:
    server.ask("projects", f'get "{version}\\{name}" got', cwd=place)
    return (place / "got").read_bytes()


@pytest.fixture
def protect(run_cli: RunCli, passphrase: str, tmp_path: Path) -> Callable[..., str]:
    """Take a point of some paths; gives the name that its folder must have."""
    run_cli("vault", "create", tmp_path / "vault", expect=0)
    run_cli("register", tmp_path / "vault", "--machine", "server", expect=0)
    taken: list[str] = []

    def take(*paths: Path) -> str:
        # Of two points of one second the later would be called after the next second.
        wait_for(lambda: not taken or datetime.now(UTC).strftime(_NAME) > taken[-1])
        started = run_cli("backup", *paths, "--json", expect=0).json["point"]["started"]
        taken.append(datetime.fromisoformat(started[:19]).strftime(_NAME))
        return taken[-1]

    return take


def test_previous_versions_of_a_live_share(
    run_cli: RunCli, tmp_path: Path, protect: Callable[..., str], count_mount: Callable[[Path | None], None]
) -> None:
    live, drive = tmp_path / "live", tmp_path / "points"
    (tmp_path / "elsewhere").mkdir()
    live.mkdir()
    contents = [b"first\n", os.urandom(300_000), b"third\n" * 1000]
    taken = []
    for number, content in enumerate(contents):
        write_files(live, {"plan.txt": content, "sub dir/\u00fcber.txt": content[::-1]})
        if number == 2:
            (live / "late.txt").write_bytes(b"late")
        taken.append(protect(live))
    protect(tmp_path / "elsewhere")  # a point that does not protect the share is none of its versions
    (live / "plan.txt").write_bytes(b"live")
    run_cli("mount", drive, "--layout", "gmt", "--machine", "server", "--path", live, expect=0)
    count_mount(drive)
    assert sorted(os.listdir(drive)) == taken

    share = documented_share().replace("/mnt/points", str(drive))
    share = share.replace("/srv/projects", str(live)).replace("srv/projects", str(live)[1:])
    with samba(tmp_path / "samba", share + "  guest ok = yes\n") as server:
        assert _versions(server, "plan.txt") == taken[::-1]
        assert _versions(server, "late.txt") == [taken[2]]
        for name, content in zip(taken, contents, strict=True):
            assert _get(server, name, "plan.txt", tmp_path) == content
            assert _get(server, name, "sub dir\\\u00fcber.txt", tmp_path) == content[::-1]
            listed = server.ask("projects", f'ls "{name}\\*"')
            assert "plan.txt" in listed and ("late.txt" in listed) == (name == taken[2])
        assert _get(server, ".", "plan.txt", tmp_path) == b"live"
        told = server.try_to("projects", f'rm "{taken[0]}\\plan.txt"', f'put smb.conf "{taken[0]}\\new"')
        assert told.returncode != 0
        assert _get(server, taken[0], "plan.txt", tmp_path) == contents[0]

        (live / "plan.txt").write_bytes(b"a new point of a running drive")
        taken.append(protect(live))
        wait_for(lambda: _versions(server, "plan.txt") == taken[::-1])
        assert _get(server, taken[3], "plan.txt", tmp_path) == b"a new point of a running drive"
    run_cli("unmount", drive, expect=0)
