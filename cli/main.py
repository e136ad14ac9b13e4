"""The command `backdrive`: its subcommands, its exit codes, and what becomes of an error.

Nothing heavy is imported here, so that `--help` answers at once: a subcommand's module is imported when it is typed.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Final, NamedTuple

import click

from cas.errors import (
    BackdriveError,
    CacheUnusable,
    Damaged,
    FormatTooNew,
    Interrupted,
    InvalidRequest,
    MachineKeyUnusable,
    MountFailed,
    NoSpace,
    NotRegistered,
    ObjectMissing,
    PathNotFound,
    PointNotFound,
    SourceUnreadable,
    TargetUnusable,
    VaultMissing,
    VaultReadOnly,
    VaultUnavailable,
    WrongPassphrase,
)

# --- the one table of exit codes ------------------------------------------------------------------------------------


class ExitCode(NamedTuple):
    """A code, what it means to a person, and the errors that give it (the nearest class of an error counts)."""

    code: int
    meaning: str
    errors: tuple[type[BaseException], ...] = ()


WARNED: Final = 3
_INTERRUPTED: Final = 130
_TERMINATED: Final = 143

EXIT_CODES: Final = (
    ExitCode(0, "done"),
    ExitCode(1, "another failure", (BackdriveError, OSError, MemoryError)),
    ExitCode(2, "the command line or what it asks for is wrong", (InvalidRequest, click.UsageError)),
    ExitCode(
        WARNED,
        "completed with warnings: some files could not be read or written, or their data in the vault is damaged; "
        "they are listed, and kept in the job record",
    ),
    ExitCode(4, "damage was found in the vault", (Damaged,)),
    ExitCode(5, "wrong passphrase, or this machine's key cannot be used", (WrongPassphrase, MachineKeyUnusable)),
    ExitCode(6, "the vault is missing or cannot be reached", (VaultMissing, VaultUnavailable, ObjectMissing)),
    ExitCode(7, "no such vault is registered on this machine", (NotRegistered,)),
    ExitCode(8, "a file system is full", (NoSpace,)),
    ExitCode(9, "the vault cannot be written", (VaultReadOnly,)),
    ExitCode(10, "the vault was written by a newer backdrive", (FormatTooNew,)),
    ExitCode(11, "no such recovery point, or no such path in it", (PointNotFound, PathNotFound)),
    ExitCode(12, "this machine's cache cannot be used", (CacheUnusable,)),
    ExitCode(13, "a drive could not be opened or closed", (MountFailed,)),
    ExitCode(
        14, "the source cannot be read, or the restore target cannot be written", (SourceUnreadable, TargetUnusable)
    ),
    ExitCode(
        _INTERRUPTED,
        f"interrupted with Ctrl-C ({_TERMINATED}: asked to stop by SIGTERM)",
        (Interrupted, KeyboardInterrupt, click.Abort),
    ),
)

_CODES: Final = {kind: row.code for row in EXIT_CODES for kind in row.errors}
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled as Ctrl-C is, with a code of its own."""


def exit_code(error: BaseException) -> int:
    """The exit code of an error."""
    if _signals.terminated and isinstance(error, Interrupted | KeyboardInterrupt | click.Abort):
        return _TERMINATED
    if isinstance(error, OSError) and error.errno in _FULL:
        return _CODES[NoSpace]
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), 1)


class _Signals:
    """Whether SIGTERM has come."""

    terminated = False

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.terminated = True
        raise Terminated


_signals: Final = _Signals()


# --- the commands ---------------------------------------------------------------------------------------------------

# Name: module below cli.commands, attribute, short help.
_COMMANDS: Final = {
    "vault": ("vault", "vault", "Create vaults."),
    "register": ("register", "register", "Register this machine with a vault."),
    "backup": ("backup", "backup", "Protect files and folders: make a recovery point."),
    "points": ("points", "points", "List, delete and take back recovery points."),
    "ls": ("browse", "ls", "List files in a recovery point."),
    "find": ("browse", "find", "Find files by name in recovery points."),
    "cat": ("browse", "cat", "Write a file of a recovery point to standard output."),
    "diff": ("browse", "diff", "Show what changed between two recovery points."),
    "versions": ("browse", "versions", "Show the distinct versions of a file."),
    "restore": ("restore", "restore", "Bring files back from a recovery point."),
    "mount": ("mount", "mount", "Open recovery points as a read-only drive."),
    "unmount": ("mount", "unmount", "Close a drive."),
    "mounts": ("mount", "mounts", "List the open drives."),
    "retention": ("retention", "retention", "Decide how long recovery points are kept."),
    "collect": ("collect", "collect", "Give back the space of what no point needs."),
    "check": ("check", "check", "Look for damage in the vault."),
    "stats": ("stats", "stats", "Show what the vault holds and what it saves."),
    "cache": ("cache", "cache", "Rebuild or clear this machine's cache."),
    "key": ("key", "key", "List, add and remove the passphrases of a repository."),
    "passphrase": ("key", "passphrase", "Change the passphrase."),
    "version": ("version", "version", "Show the version."),
}


class _LazyGroup(click.Group):
    """Imports the module of a subcommand when that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, short = _COMMANDS[cmd_name]
        command = getattr(import_module(f"cli.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        command.short_help = short
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # Never guessed at and run: a near miss is only named.
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1) if args else []
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"There is no command '{args[0] if args else ''}'.{hint}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, _, short) in _COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(row.code), row.meaning) for row in EXIT_CODES])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Backups that open as a drive: deduplicated, encrypted recovery points, mounted and browsed.

    \b
    A first backup:
      backdrive vault create /mnt/disk/vault
      backdrive register /mnt/disk/vault
      backdrive backup ~/Documents
      backdrive mount /mnt/drive

    BACKDRIVE_HOME holds this machine's registration and cache, BACKDRIVE_VAULT names the vault meant where several are
    registered, BACKDRIVE_PASSPHRASE serves scripts.
    """


# --- the way out ----------------------------------------------------------------------------------------------------


def _say(message: str) -> None:
    """One paragraph on standard error."""
    from shutil import get_terminal_size
    from textwrap import fill

    width = min(get_terminal_size((100, 24)).columns, 120)
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message.replace("\n", " "))
    text = fill(f"backdrive: {clean}", max(width, 40), break_long_words=False, break_on_hyphens=False)
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens


def _bug(error: BaseException) -> str:
    """Keep the traceback of an unexpected error; returns what to tell the person."""
    import traceback
    from datetime import UTC, datetime

    text = "".join(traceback.format_exception(error))
    if os.environ.get("BACKDRIVE_DEBUG", "") not in ("", "0"):
        sys.stderr.write(text)
    summary = f"This is a bug in backdrive ({type(error).__name__})."
    try:
        from cas.agent.files import write_atomic
        from cas.agent.home import find_home

        name = f"fault-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.txt"
        path = find_home(os.environ).logs / name
        write_atomic(path, f"{sys.argv[1:2]}\n{text}".encode(errors="backslashreplace"))
    except Exception:  # noqa: BLE001 - whatever hinders the log must not hide the fault itself
        return f"{summary} Run the command again with BACKDRIVE_DEBUG=1 to see where, and report it."
    return f"{summary} Please report it with {path}, which tells where it happened. What was stored before is kept."


def _explain(error: BaseException) -> str:
    """What a person is told of an error; nothing where there is nothing to tell."""
    if isinstance(error, BrokenPipeError):
        return ""  # who read our output has seen enough
    if isinstance(error, KeyboardInterrupt | click.Abort | Interrupted):
        if isinstance(error, click.Abort) and error.__cause__ is None:
            return "Stopped."  # a question was answered with Ctrl-C, Ctrl-D or no
        return str(error) or "Interrupted. Nothing is lost: run the command again, and it goes on from what is done."
    if isinstance(error, BackdriveError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or error}."
    if isinstance(error, MemoryError):
        return "There is not enough memory for this. Nothing in the vault is harmed; run the command again."
    return _bug(error)


def _run(arguments: list[str] | None) -> int:
    try:
        code = cli.main(arguments, prog_name="backdrive", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BaseException as error:  # the last place there is: every error ends here, with its code
        if isinstance(error, SystemExit):
            raise
        message = _explain(error)
        if message:
            _say(message)
        return exit_code(error)


def _open_standard_streams() -> None:
    """A stream that was closed by the caller becomes one that nobody reads: no vault file may get its number."""
    for name, number, flags in (("stdin", 0, os.O_RDONLY), ("stdout", 1, os.O_WRONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit with its code."""
    _open_standard_streams()
    gc.set_threshold(100_000, 20, 20)  # a run makes many objects that stay and few cycles: looking for them costs 8 %
    signal.signal(signal.SIGTERM, _signals.terminate)
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try to flush again on its way out, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if arguments is not None:
        sys.exit(code)
    # Everything is closed and written by now. Taking a large heap apart would cost a long run some tenths of a second.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # `python -m cli.main` would otherwise have two copies of this module, one of them with its signals unset.
    from cli.main import main as run

    run()
