"""Fixtures for every test: a home of its own, the real command in a process, the sample tree, a count of drives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import settings

from fixtures.make_server import make_server

ROOT = Path(__file__).resolve().parent.parent
PASSPHRASE = "correct horse, battery and staple"
IN_CI = os.environ.get("CI", "") not in ("", "0", "false")
_MOUNTS = "BACKDRIVE_TEST_MOUNTS"  # names the directory that all processes of a test session share

settings.register_profile("here", deadline=None)  # a shared machine pauses when it likes
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if IN_CI else "here")


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CliResult:
    """How one run of `backdrive` ended."""

    command: tuple[str, ...]
    code: int
    raw: bytes  # standard output as it came
    stderr: str

    @property
    def stdout(self) -> str:
        return self.raw.decode("utf-8", "surrogateescape")

    @property
    def json(self) -> Any:
        """Standard output, parsed. Fails the test with both outputs where it is no JSON."""
        try:
            return json.loads(self.raw)
        except ValueError:
            pytest.fail(f"no JSON on standard output:\n{self}")

    def __str__(self) -> str:
        return (
            f"$ {' '.join(self.command)}\n{self.stdout}\n--- standard error:\n{self.stderr}\n--- exit code {self.code}"
        )


class RunCli(Protocol):
    """The type of the fixture `run_cli`."""

    def __call__(
        self,
        *arguments: str | bytes | os.PathLike[str],
        expect: int | None = None,
        stdin: str | bytes = b"",
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        timeout: float = 100,
        traceback_allowed: bool = False,
    ) -> CliResult:
        """Run `backdrive ARGUMENTS` in a process of its own.

        `expect` is the exit code it must have, where given. `env` adds to the environment; None removes a variable.
        """


def _run_cli(
    *arguments: str | bytes | os.PathLike[str],
    expect: int | None = None,
    stdin: str | bytes = b"",
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    timeout: float = 100,
    traceback_allowed: bool = False,
) -> CliResult:
    command = [sys.executable, "-m", "cli.main", *(os.fsdecode(argument) for argument in arguments)]
    environment: dict[str, str | None] = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUTF8": "1",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        **(env or {}),
    }
    # Standard output and error go to files, not pipes: a drive that stays in the background would hold a pipe open,
    # and a test must not depend on how well it lets go.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.run(
            command,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdout=out,
            stderr=err,
            env={name: value for name, value in environment.items() if value is not None},
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
        out.seek(0)
        err.seek(0)
        result = CliResult(
            command=("backdrive", *command[3:]),
            code=done.returncode,
            raw=out.read(),
            stderr=err.read().decode("utf-8", "surrogateescape"),
        )
    if "Traceback" in result.stderr and not traceback_allowed:
        pytest.fail(f"the command showed a traceback:\n{result}")
    if expect is not None and result.code != expect:
        pytest.fail(f"expected exit code {expect}:\n{result}")
    return result


@pytest.fixture
def run_cli(home: Path) -> RunCli:
    """The real command, in a process of its own, with the test's `home`."""
    assert os.environ["BACKDRIVE_HOME"] == str(home)
    return _run_cli


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """BACKDRIVE_HOME, not made yet. Nothing of the person who runs the tests is seen or touched.

    Drives that the test left mounted under `tmp_path` are unmounted afterwards, so that nothing outlives it.
    """
    path = tmp_path / "home"
    for name in [name for name in os.environ if name.startswith("BACKDRIVE_") and name != _MOUNTS]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BACKDRIVE_HOME", str(path))
    yield path
    for mountpoint in reversed(fuse_mounts()):
        if mountpoint.is_relative_to(tmp_path):
            subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False)


@pytest.fixture
def passphrase(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A passphrase, in BACKDRIVE_PASSPHRASE too."""
    monkeypatch.setenv("BACKDRIVE_PASSPHRASE", PASSPHRASE)
    return PASSPHRASE


@pytest.fixture
def server_tree(tmp_path: Path) -> Path:
    """The sample file server; `fixtures.make_server.change_server(tree, day)` does a day of work in it."""
    tree = tmp_path / "server"
    make_server(tree)
    return tree


# --- drives -----------------------------------------------------------------------------------------------------------


def fuse_mounts() -> list[Path]:
    """Where FUSE file systems are mounted now, in the order of mounting."""
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            kind = fields[fields.index(b"-") + 1]
            if kind == b"fuse" or kind.startswith(b"fuse."):
                path = fields[4]
                for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
                    path = path.replace(code, byte)
                found.append(Path(os.fsdecode(path)))
    return found


def count_mount(target: Path | None = None) -> None:
    """Count one real drive; the summary of the session tells the sum.

    Call it while the drive is mounted: it fails unless a FUSE file system is at `target` (anywhere, where None).
    """
    mounts = fuse_mounts()
    if not mounts or (target is not None and target.resolve() not in mounts):
        pytest.fail(f"no FUSE file system is mounted at {target or 'any place'}")
    descriptor = os.open(Path(os.environ[_MOUNTS], "mounts"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, b".")  # appended whole, whichever processes count at once
    finally:
        os.close(descriptor)


@pytest.fixture(name="count_mount")
def count_mount_fixture() -> Callable[[Path | None], None]:
    """The function `count_mount`, for tests that rather ask for it than import it."""
    return count_mount


def _why_no_fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened ({error.strerror})"
    return None if shutil.which("fusermount3") else "there is no fusermount3"


# --- the session ------------------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the controller, or the only process: workers inherit the variable
        os.environ[_MOUNTS] = tempfile.mkdtemp(prefix="backdrive-mounts-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput") and _MOUNTS in os.environ:
        shutil.rmtree(os.environ.pop(_MOUNTS), ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("fuse") and (reason := _why_no_fuse()):
        pytest.fail(f"{reason}, and this test mounts a real drive. Run 'make setup', as root if need be.")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        if IN_CI:
            pytest.fail("this test needs root, and CI must run every test")
        pytest.skip("needs root")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    counted = Path(os.environ[_MOUNTS], "mounts")
    terminalreporter.write_line(f"FUSE mounts: {counted.stat().st_size if counted.exists() else 0}")
