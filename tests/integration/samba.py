"""A Samba server of the test's own: its configuration, its data and its port are nobody else's."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.drive_bench import wait_for

_GLOBAL = """[global]
  server role = standalone server
  map to guest = Bad User
  guest account = {user}
  bind interfaces only = yes
  interfaces = 127.0.0.1/8
  smb ports = {port}
  disable netbios = yes
  load printers = no
  rpc start on demand helpers = no
  private dir = {place}/private
  state directory = {place}/state
  cache directory = {place}/state
  lock directory = {place}/state
  pid directory = {place}/state
  ncalrpc dir = {place}/rpc
  log file = {place}/log

"""


@dataclass(frozen=True, slots=True)
class Samba:
    """A server that runs."""

    place: Path
    port: int

    def ask(self, share: str, *commands: str, cwd: Path | None = None) -> str:
        """What smbclient prints; fails the test where it cannot do it."""
        done = self.try_to(share, *commands, cwd=cwd)
        if done.returncode != 0:
            log = (self.place / "log").read_text(errors="replace")
            pytest.fail(f"smbclient ended with {done.returncode}:\n{done.stdout}{done.stderr}\n{log}")
        return done.stdout

    def try_to(self, share: str, *commands: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run commands of smbclient as a guest."""
        options = ["-s", str(self.place / "smb.conf"), "-N", "-p", str(self.port), "-c", ";".join(commands)]
        command = ["smbclient", *options, f"//127.0.0.1/{share}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)


@contextmanager
def samba(place: Path, shares: str) -> Iterator[Samba]:
    """Run smbd with these shares (sections of smb.conf) for the time of the block. Guests are who runs the tests."""
    for program in ("smbd", "smbclient"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.fail(f"there is no {program}: run 'make setup', as root if need be")
    for name in ("", "private", "state", "rpc"):
        (place / name).mkdir(mode=0o755)
    server = Samba(place, _free_port())
    user = pwd.getpwuid(os.getuid()).pw_name
    (place / "smb.conf").write_text(_GLOBAL.format(place=place, port=server.port, user=user) + shares)
    with open(place / "output", "wb") as output:
        command = ["smbd", "-F", "--no-process-group", "-s", str(place / "smb.conf")]
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # smbd ends its whole process group with itself
        )
    try:
        wait_for(lambda: _answers(server.port) or process.poll() is not None)
        assert process.poll() is None, (place / "output").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
