"""Options that several commands share, and where a command finds the home, the session and the passphrase."""

from __future__ import annotations

import os
import sys
import time
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
