"""Options that several commands share, and where a command finds the home, the session and the passphrase."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import click

from cas.agent.home import Home, find_home
from cas.errors import InvalidRequest

if TYPE_CHECKING:
    from cas.agent.runs import Edge
    from cas.agent.session import Session

vault_option = click.option(
    "--vault",
    metavar="NAME",
    envvar="BACKDRIVE_VAULT",
    help="Which registered vault is meant, where there are several (or BACKDRIVE_VAULT).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
passphrase_option = click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(),
    help="Read the passphrase from the first line of FILE (or set BACKDRIVE_PASSPHRASE).",
)
new_passphrase_option = click.option(
    "--new-passphrase-file",
    metavar="FILE",
    type=click.Path(),
    help="Read the new passphrase from the first line of FILE (or set BACKDRIVE_NEW_PASSPHRASE).",
)
yes_option = click.option("--yes", is_flag=True, help="Do it without asking.")

POINT_HELP = (
    "POINT is the beginning of a point's id, 'latest', 'latest@MACHINE', or the beginning of its time, such as "
    "2026-11-22T07."
)


def home() -> Home:
    """The machine's home, from the environment."""
    return find_home(os.environ)


def session(vault: str | None) -> AbstractContextManager[Session]:
    """The registered repository that the command works on."""
    from cas.agent.session import open_session

    return open_session(home(), vault)


def edge() -> Edge:
    """The clock and the exit codes, for the tasks that are recorded as jobs."""
    from cas.agent.runs import Edge
    from cli.main import WARNED, exit_code

    return Edge(time.time_ns, exit_code, WARNED)


def inner_path(text: bytes | None) -> bytes | None:
    """A path as it stands in a recovery point: absolute, seen from here."""
    return None if text is None else os.path.abspath(text)


path_type: Final = click.Path(path_type=bytes, readable=False)


# --- values ---------------------------------------------------------------------------------------------------------

_NOBODY: Final = (1 << 32) - 1  # the number that the system takes for "no change"
_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGTP]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int | None:
    """Bytes from `4096`, `256M`, `20GiB`: binary units, in any case. None where it is no size."""
    found = _SIZE.fullmatch(text.strip())
    return None if found is None else int(found[1]) << 10 * " KMGTP".index(found[2].upper() or " ")


def size_at_least(
    least: int, *, in_memory: bool = False
) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """The callback of an option that takes a number of bytes, of which there must be so many at least.

    With `in_memory`, this machine must have as much memory.
    """

    def callback(_context: click.Context, _parameter: click.Parameter, given: str | None) -> int | None:
        size = None if given is None else parse_size(given)
        if given is not None and size is None:
            raise click.BadParameter(f"'{given}' is no size. Give one such as 256M or 20G.")
        if size is not None and size < least:
            raise click.BadParameter(f"{given} is too little: {least >> 20}M is the least.")
        if size is not None and in_memory and size > _memory():
            raise click.BadParameter(f"{given} is too much: this machine has {_memory() >> 20}M of memory.")
        return size

    return callback


def _memory() -> int:
    """How many bytes of memory this machine has; more than any option may give, where it does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def tags(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """The callback of `--tag K=V`, which may be given several times."""
    found = {}
    for tag in given:
        key, equals, value = tag.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"'{tag}' is not of the form KEY=VALUE")
        found[key] = value
    return found


def account(kind: str) -> Callable[[click.Context, click.Parameter, str | None], int | None]:
    """The callback of an option that takes a "user" or a "group" of this machine, by name or number."""

    def callback(_context: click.Context, _parameter: click.Parameter, given: str | None) -> int | None:
        if given is None:
            return None
        if given.isascii() and given.isdigit():
            if int(given) < _NOBODY:
                return int(given)
            raise click.BadParameter(f"{given} is no number of a {kind}.")
        import grp
        import pwd

        try:
            return pwd.getpwnam(given).pw_uid if kind == "user" else grp.getgrnam(given).gr_gid
        except KeyError:
            raise click.BadParameter(f"There is no {kind} named '{given}' here.") from None

    return callback


def umask(_context: click.Context, _parameter: click.Parameter, given: str | None) -> int | None:
    """The callback of an option that takes permission bits in octal, as umask(1) does."""
    if given is not None and not re.fullmatch("0?[0-7]{1,3}", given):
        raise click.BadParameter(f"'{given}' is no umask. Give octal digits such as 022.")
    return None if given is None else int(given, 8)


# --- passphrases ----------------------------------------------------------------------------------------------------


def on_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def _given(file: str | None, variable: str) -> str | None:
    """The passphrase in the file or the variable, or None where neither is given."""
    if file is not None:
        try:
            with open(file, encoding="utf-8-sig") as lines:
                found = lines.readline().rstrip("\r\n")
        except OSError as error:
            raise InvalidRequest(f"The passphrase file {file} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise InvalidRequest(f"The passphrase file {file} is not UTF-8 text.") from None
        if not found:
            raise InvalidRequest(f"The passphrase file {file} has nothing in its first line.")
        return found
    found = os.environ.get(variable, "")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"What {variable} holds is not UTF-8 text.") from None
    return found or None


def _ask(prompt: str) -> str:
    answer = click.prompt(prompt, hide_input=True, default="", show_default=False, err=True)
    return str(answer)


def passphrase(file: str | None, what: str = "Passphrase") -> str:
    """A passphrase that exists: from the file, BACKDRIVE_PASSPHRASE, or asked for once. Raises InvalidRequest."""
    given = _given(file, "BACKDRIVE_PASSPHRASE")
    if given is not None:
        return given
    if not on_terminal():
        raise InvalidRequest(
            "A passphrase is needed, and there is no terminal to ask on.",
            "Set BACKDRIVE_PASSPHRASE or --passphrase-file.",
        )
    return _ask(what)


def new_passphrase(
    file: str | None, variable: str = "BACKDRIVE_NEW_PASSPHRASE", option: str = "--new-passphrase-file"
) -> tuple[str, bool]:
    """A passphrase to be: from the file or the variable, asked for twice, or generated and shown once.

    Returns it and whether it was generated. Raises InvalidRequest.
    """
    given = _given(file, variable)
    if given is not None:
        return given, False
    if not on_terminal():
        raise InvalidRequest(
            "A passphrase is needed, and there is no terminal to ask on.", f"Set {variable} or {option}."
        )
    while True:
        first = _ask("Passphrase, 16 characters or more (Enter: make one up)")
        if not first:
            from cas.agent.passphrases import generate

            made = generate()
            click.echo(f"\n    {made}\n\nThis is the passphrase. It is shown this once: write it down now.", err=True)
            return made, True
        if _ask("The same again") == first:
            return first, False
        click.echo("The two differ. Once more:", err=True)


def confirm(message: str, question: str) -> bool:
    """Ask on a terminal; elsewhere the answer is no."""
    if not on_terminal():
        return False
    click.echo(message, err=True)
    return click.confirm(question, default=False, err=True)


def must_confirm(yes: bool, question: str) -> None:
    """Go on only where a person says yes, or said `--yes`. Raises InvalidRequest, click.Abort."""
    if yes:
        return
    if not on_terminal():
        raise InvalidRequest("This needs a person's consent.", "Add --yes to do it without asking.")
    click.confirm(question, default=False, abort=True, err=True)
