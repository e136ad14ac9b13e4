"""The command as such: help, exit codes, errors, signals, pipes."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from cas import __version__, errors
from cli.main import EXIT_CODES, cli, exit_code
from tests.cli.terminal import words
from tests.conftest import ROOT, RunCli


def all_commands(group: click.Group = cli, above: str = "") -> list[tuple[str, click.Command]]:
    """Every command that does something, with its full name."""
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            found += all_commands(command, f"{above}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found.append((above + name, command))
    return found


COMMANDS = all_commands()


def test_the_commands_are_those_of_the_table() -> None:
    assert {name for name, _ in COMMANDS} == {
        *("vault create", "register", "backup", "points", "ls", "find", "cat", "diff", "versions", "restore"),
        *("mount", "unmount", "mounts", "check", "stats", "cache rebuild", "cache clear"),
        *("points delete", "points undelete", "retention set", "retention show", "retention apply", "collect"),
        *("key list", "key add", "key remove", "passphrase change", "version"),
    }


def test_help_names_every_command_and_exit_code(run_cli: RunCli) -> None:
    out = run_cli("--help", expect=0).stdout
    for name in {name.partition(" ")[0] for name, _ in COMMANDS}:
        assert re.search(rf"^  {name}  +\S", out, re.MULTILINE)
    for row in EXIT_CODES:
        assert re.search(rf"^  {row.code} +{re.escape(row.meaning[:30])}", out, re.MULTILINE)


@pytest.mark.parametrize("name, command", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_is_explained_with_an_example(name: str, command: click.Command) -> None:
    text = inspect.cleandoc(command.help or "")
    assert f"Example: backdrive {name}" in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_help_needs_nothing_heavy() -> None:
    script = "import sys, cli.main\ntry: cli.main.main(['--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.splitlines()[-1].split())
    assert not modules & {"rich", "lmdb", "cryptography", "msgspec", "blake3", "zstandard", "argon2", "pyfuse3", "trio"}


def test_points_needs_no_rich_and_no_argon2() -> None:
    script = "import sys, cli.commands.points, cas.agent.session\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"rich", "argon2", "pyfuse3", "trio", "pathspec"}


def test_version(run_cli: RunCli) -> None:
    assert run_cli("version", expect=0).stdout.startswith(f"backdrive {__version__}, vault format 1")
    assert run_cli("version", "--json", expect=0).json["version"] == __version__


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nonsense"], "no command 'nonsense'"),
        (["backups"], "Did you mean 'backup'?"),
        (["backup"], "Missing argument"),
        (["backup", "/", "--tag", "x"], "KEY=VALUE"),
        (["points", "--nonsense"], "No such option"),
        (["restore", "latest"], "--to DIR or --original"),
        (["restore", "latest", "--original", "--to", "x"], "--to DIR or --original"),
        (["mount", "a", "b", "c"], "one target"),
        (["check", "--read-data", "101"], "101"),
        (["restore", "latest", "--original", "--conflict", "ask"], "copy"),
    ],
)
def test_a_wrong_call_is_code_2(run_cli: RunCli, arguments: list[str], says: str) -> None:
    assert says in words(run_cli(*arguments, expect=2).stderr)


@pytest.mark.parametrize(
    "arguments",
    [["points"], ["backup", "/etc"], ["ls", "latest"], ["stats"], ["mount", "x"], ["cache", "clear"], ["key", "list"]],
)
def test_unregistered_is_code_7(run_cli: RunCli, home: Path, arguments: list[str]) -> None:
    assert "backdrive register" in words(run_cli(*arguments, expect=7).stderr)
    assert not home.exists(), "looking makes nothing"


# --- the table of exit codes ------------------------------------------------------------------------------------------


def test_every_error_has_its_code() -> None:
    expected: dict[type[BaseException], int] = {
        errors.BackdriveError: 1,
        errors.ObjectExists: 1,
        errors.InvalidRequest: 2,
        errors.Damaged: 4,
        errors.PackDamaged: 4,
        errors.ChunkMissing: 4,
        errors.WrongPassphrase: 5,
        errors.MachineKeyUnusable: 5,
        errors.VaultMissing: 6,
        errors.VaultUnavailable: 6,
        errors.ObjectMissing: 6,
        errors.NotRegistered: 7,
        errors.NoSpace: 8,
        errors.VaultReadOnly: 9,
        errors.FormatTooNew: 10,
        errors.PointNotFound: 11,
        errors.PathNotFound: 11,
        errors.CacheUnusable: 12,
        errors.MountFailed: 13,
        errors.TargetUnusable: 14,
        errors.SourceUnreadable: 14,
        errors.Interrupted: 130,
        KeyboardInterrupt: 130,
        ValueError: 1,
    }
    for kind, code in expected.items():
        error: BaseException = kind.__new__(kind)  # their constructors differ
        assert exit_code(error) == code, kind
    assert exit_code(OSError(28, "No space left on device")) == 8


def test_codes_are_told_once() -> None:
    assert len({row.code for row in EXIT_CODES}) == len(EXIT_CODES)
    kinds = [kind for row in EXIT_CODES for kind in row.errors]
    assert len(set(kinds)) == len(kinds)


# --- what becomes of an error -----------------------------------------------------------------------------------------


def test_a_fault_of_ours_is_logged_and_not_shown(run_cli: RunCli, home: Path) -> None:
    broken = "import cas.agent.vaults as v\ndef fail(url): raise ZeroDivisionError('surprise')\nv.create_vault = fail\n"
    script = broken + "from cli.main import main\nmain(['vault', 'create', 'x'])"
    for debug in ("", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "BACKDRIVE_DEBUG": debug},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "This is a bug in backdrive (ZeroDivisionError)" in words(done.stderr)
        assert ("Traceback" in done.stderr) == bool(debug)
    log = next((home / "logs").iterdir())
    assert "surprise" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_message_is_one_wrapped_paragraph_without_control_characters(run_cli: RunCli, tmp_path: Path) -> None:
    place = tmp_path / "red\x1b[31m"
    place.mkdir()
    (place / "x").touch()
    told = run_cli("vault", "create", place, expect=2, env={"COLUMNS": "60"}).stderr
    assert told.startswith("backdrive: ")
    assert "\x1b" not in told
    assert all(len(line) <= max(60, len(str(place)) + 20) for line in told.splitlines())


def test_a_closed_pipe_is_no_error_worth_telling(run_cli: RunCli, tree: Path, point: str) -> None:
    for number in range(3000):
        (tree / f"file number {number:05} with a long name, to fill the pipe").touch()
    run_cli("backup", tree, expect=0)
    command = [sys.executable, "-m", "cli.main", "ls", "latest", "-R"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_backup_with_its_code(
    run_cli: RunCli, vault: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    source = tmp_path / "much"
    source.mkdir()
    for name in range(40):
        (source / str(name)).write_bytes(os.urandom(4 << 20))
    command = [sys.executable, "-m", "cli.main", "backup", str(source)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not list(vault.glob("repositories/*/sessions/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, told = process.communicate()
    assert process.returncode == code, told
    assert "Interrupted" in told and "Traceback" not in told
    assert run_cli("points", "--json", expect=0).json == []
    run_cli("backup", source, expect=0)


@pytest.mark.parametrize("arguments", [["points"], ["backup", "/etc/hostname"], ["mount", "drive"], ["stats"]])
def test_a_vault_that_is_gone_is_code_6(run_cli: RunCli, vault: Path, tmp_path: Path, arguments: list[str]) -> None:
    vault.rename(tmp_path / "moved")
    assert "There is no vault at" in words(run_cli(*arguments, expect=6, cwd=tmp_path).stderr)


def test_a_vault_from_the_future_is_code_10(run_cli: RunCli, vault: Path) -> None:
    header = vault / "vault.json"
    text = header.read_text()
    header.chmod(0o600)
    changed = re.sub(r'"version": ?1', '"version": 2', text)
    assert changed != text
    header.write_text(changed)
    run_cli("points", expect=10)
