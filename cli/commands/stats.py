"""`backdrive stats`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.stats import RepositoryStats


@click.command()
@options.vault_option
@options.json_option
@click.pass_context
def stats(context: click.Context, vault: str | None, as_json: bool) -> None:
    """Show what the repository holds, and what deduplication and compression save.

    Example: backdrive stats --json
    """
    from cas.tasks import stats as task
    from cli.main import exit_code

    with options.session(vault) as session:
        found = task.stats(session.repository)
        about = {"vault": session.registration.vault, "repository": session.registration.repository}
    if as_json:
        render.document({**about, **_document(found)})
    else:
        _show(about["vault"], found)
    render.show_problems(found.problems)
    context.exit(exit_code(found.problems[0]) if found.problems else 0)


def _document(found: RepositoryStats) -> dict[str, object]:
    return {
        "points": found.points,
        "chunks": found.chunks,
        "packs": found.packs,
        "size": found.size,
        "size_of_all": found.size_of_all,
        "saving": round(found.saving, 2),
        "objects": {name: {"count": count, "size": size} for name, (count, size) in sorted(found.objects.items())},
        "machines": {
            name: {
                "points": machine.points,
                "first": render.iso_time(machine.first),
                "last": render.iso_time(machine.last),
                "size": machine.size,
                "size_of_all": machine.size_of_all,
                "added": machine.added,
            }
            for name, machine in sorted(found.machines.items())
        },
    }


def _show(url: str, found: RepositoryStats) -> None:
    render.line(f"{url}: {render.size(found.size)} for {render.plural(found.points, 'point')}")
    if found.saving:
        render.line(
            f"Full copies of them would take {render.size(found.size_of_all)}: {found.saving:.1f} times as much."
        )
    render.line(f"{render.plural(found.chunks, 'chunk')} in {render.plural(found.packs, 'pack')}")
    rows: list[tuple[str, ...]] = [("objects", "count", "size")]
    rows += [(name, f"{count:,}", render.size(size)) for name, (count, size) in sorted(found.objects.items())]
    _table(rows, (1, 2))
    if found.machines:
        machines: list[tuple[str, ...]] = [("machine", "points", "first", "last", "size", "added")]
        machines += [
            (
                name,
                f"{machine.points:,}",
                render.time(machine.first),
                render.time(machine.last),
                render.size(machine.size),
                render.size(machine.added),
            )
            for name, machine in sorted(found.machines.items())
        ]
        _table(machines, (1, 4, 5))


def _table(rows: list[tuple[str, ...]], right: tuple[int, ...]) -> None:
    render.line()
    for row in render.columns(rows, right):
        render.line(row)
