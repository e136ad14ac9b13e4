"""`backdrive restore`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.requests import RestoreResult


@click.command()
@click.argument("point", metavar="POINT")
@click.argument("items", metavar="[PATH]...", nargs=-1, type=options.path_type)
@click.option("--to", "target", metavar="DIR", type=click.Path(path_type=Path), help="Put the files into DIR.")
@click.option("--original", is_flag=True, help="Put the files back where they were.")
@click.option(
    "--conflict",
    type=click.Choice(["copy", "overwrite", "skip"]),
    default="copy",
    show_default=True,
    help="What to do where another file stands: restore beside it, replace it, or leave it.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be restored, and write nothing.")
@click.option("--verify", is_flag=True, help="Read back what was written and compare.")
@options.vault_option
@options.json_option
@click.pass_context
def restore(
    context: click.Context,
    point: str,
    items: tuple[bytes, ...],
    target: Path | None,
    original: bool,
    conflict: str,
    dry_run: bool,
    verify: bool,
    vault: str | None,
    as_json: bool,
) -> None:
    """Bring files back from a recovery point: the PATHs, or everything.

    With --to, each PATH lands in DIR as 'cp -a' would put it; everything lands there with full paths. A run that was
    interrupted is finished by running it again.

    Example: backdrive restore latest /home/ada/thesis --to /tmp/back
    """
    from cas.agent.runs import run_restore
    from cas.tasks.requests import Conflict, RestoreRequest

    if (target is not None) == original:
        raise click.UsageError("Say where to: either --to DIR or --original.", context)
    request = RestoreRequest(
        items=[options.inner_path(item) or b"/" for item in items],
        target=None if target is None else target.absolute(),
        conflict=Conflict(conflict),
        dry_run=dry_run,
        verify=verify,
    )
    edge = options.edge()
    with options.session(vault) as session, render.progress(as_json) as listen:
        meant = session.point(point)
        result = run_restore(session, meant, request, edge, listen)
    if as_json:
        document = {**asdict(result), "warnings": render.warning_documents(result.warnings)}
        render.document({"point": meant.id, "dry_run": dry_run, **document})
    else:
        render.show_warnings(result.warnings)
        render.line(("Dry run: " if dry_run else "Restored ") + _summary(result))
    context.exit(edge.warned if result.warnings else 0)


def _summary(result: RestoreResult) -> str:
    parts = [f"{render.plural(result.files, 'file')} ({render.size(result.size)})"]
    parts += [
        f"{count:,} {what}"
        for count, what in (
            (result.directories, "directory" if result.directories == 1 else "directories"),
            (result.others, "link or other" if result.others == 1 else "links and others"),
            (result.unchanged, "already there"),
            (result.renamed, "beside what was there"),
            (result.skipped, "skipped"),
            (result.verified, "verified"),
        )
        if count
    ]
    if result.warnings:
        parts.append(render.plural(len(result.warnings), "warning"))
    return ", ".join(parts) + "."
