"""The README tells what the command does: every command, every option of the table, every exit code."""

from __future__ import annotations

import re

import click
import pytest

from cli.main import EXIT_CODES, cli
from tests.conftest import ROOT


def leaves(group: click.Group, above: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= leaves(command, f"{above}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[above + name] = command
    return found


COMMANDS = leaves(cli)


@pytest.fixture(scope="module")
def readme() -> str:
    path = ROOT / "README.md"
    if not path.exists():
        pytest.fail("there is no README.md")
    return path.read_text()


def rows(readme: str) -> dict[str, str]:
    """The rows of the command table, by what stands in their first cell: | `backdrive points [--json]` | ... |."""
    cells = re.findall(r"^\| `backdrive ([^`]+)`", readme, re.MULTILINE)
    found: dict[str, str] = {}
    for cell in cells:
        cell = cell.replace("\\|", "|")
        name = " ".join(re.match(r"[a-z]+(?: [a-z]+)*", cell)[0].split())  # type: ignore[index]
        found[name] = cell
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_row_with_its_options(readme: str, name: str) -> None:
    table = rows(readme)
    assert name in table, f"README.md has no row that starts with | `backdrive {name} ...` |"
    told = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", table[name]))
    known = {option for parameter in COMMANDS[name].params for option in parameter.opts if option.startswith("-")}
    assert told <= known, f"README.md tells of options that {name} has not: {told - known}"


def test_the_table_has_no_row_of_a_command_that_is_not(readme: str) -> None:
    assert set(rows(readme)) <= set(COMMANDS)


def test_the_exit_codes_are_those_of_the_table(readme: str) -> None:
    told = {
        int(code): meaning.strip() for code, meaning in re.findall(r"^\| `?(\d+)`? \| ([^|]+)\|", readme, re.MULTILINE)
    }
    assert told == {row.code: row.meaning for row in EXIT_CODES}
