"""`backdrive check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.findings import CheckReport, Problem

_MOST_FILES = 20  # shown; JSON has all that the report lists


@click.command()
@click.option(
    "--read-data",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    default=0.0,
    help="Also open this share of the packs, chosen at random: 100 for all.",
)
@options.vault_option
@options.json_option
@click.pass_context
def check(context: click.Context, read_data: float, vault: str | None, as_json: bool) -> None:
    """Look for damage: every point, directory, index entry and pack, and, with --read-data, what is in the packs.

    Nothing is changed. Damage is named with the points and files that it touches (exit code 4).

    Example: backdrive check --read-data 10
    """
    from cas.agent.runs import run_check
    from cas.errors import Damaged

    edge = options.edge()
    with options.session(vault) as session, render.progress(as_json) as listen:
        report = run_check(session, read_data, edge, listen)
    if as_json:
        render.document(_document(report))
    else:
        for problem in report.problems:
            _show(problem)
        for note in report.notes:
            render.note(f"note: {note}")
        render.line(_summary(report))
    context.exit(edge.code_of(Damaged("")) if report.problems else 0)


def _document(report: CheckReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "points": report.points,
        "trees": report.trees,
        "files": report.files,
        "chunks": report.chunks,
        "packs": report.packs,
        "packs_read": report.packs_read,
        "read": report.read,
        "notes": report.notes,
        "problems": [
            {
                "kind": problem.kind,
                "name": problem.name,
                "reason": problem.reason,
                "advice": problem.advice,
                "points": list(problem.points),
                "file_count": problem.file_count,
                "files": [render.text(name) for name in problem.files],
            }
            for problem in report.problems
        ],
    }


def _show(problem: Problem) -> None:
    render.line(str(problem))
    for name in problem.files[:_MOST_FILES]:
        render.line(f"    {render.path(name)}")
    if problem.file_count > _MOST_FILES:
        render.line(f"    and {problem.file_count - _MOST_FILES:,} more")


def _summary(report: CheckReport) -> str:
    looked = (
        f"{render.plural(report.points, 'point')}, {render.plural(report.trees, 'directory', 'directories')}, "
        f"{render.plural(report.chunks, 'chunk')}, {render.plural(report.packs, 'pack')}, of which "
        f"{report.packs_read:,} read ({render.size(report.read)})"
    )
    if report.ok:
        return f"No damage: {looked}."
    return f"{render.plural(len(report.problems), 'problem')} found: {looked}."
