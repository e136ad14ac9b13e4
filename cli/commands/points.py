"""`backdrive points`."""

from __future__ import annotations

import click

from cli import options, render


@click.command()
@click.option("--machine", metavar="M", help="Only the points of this machine.")
@click.option("--path", "inside", metavar="P", type=options.path_type, help="Only the points that protect this path.")
@options.vault_option
@options.json_option
@click.pass_context
def points(context: click.Context, machine: str | None, inside: bytes | None, vault: str | None, as_json: bool) -> None:
    """List the recovery points, newest last.

    Times are local to the place where the point was taken.

    Example: backdrive points --machine laptop --path /home
    """
    from cas.agent.session import list_points
    from cas.tasks.choose import point_time
    from cli.main import exit_code

    with options.session(vault) as session:
        found, problems = list_points(session, machine, options.inner_path(inside))
    if as_json:
        render.document([render.point_document(point) for point in found])
    else:
        rows = [
            (
                point.id[:8],
                point_time(point).replace("T", " "),
                point.machine,
                " ".join(map(render.path, point.paths)),
                f"{point.stats.files:,}",
                render.size(point.stats.size),
                render.size(point.stats.added),
                point.mode,
            )
            for point in found
        ]
        head = ("id", "time", "machine", "paths", "files", "size", "added", "mode")
        for row in render.columns([head, *rows] if rows else [], right=(4, 5, 6)):
            render.line(row)
        if not found:
            render.note("There are no recovery points" + (" of that kind." if machine or inside else " yet."))
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)
