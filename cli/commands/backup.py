"""`backdrive backup`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.requests import BackupResult


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=options.path_type)
@click.option(
    "--exclude", "excludes", metavar="PATTERN", multiple=True, help="Leave out what matches, as .gitignore does."
)
@click.option(
    "--exclude-from", "exclude_files", metavar="FILE", multiple=True, help="Read patterns from FILE, one a line."
)
@click.option("--one-file-system", is_flag=True, help="Do not cross into other file systems.")
@click.option("--exclude-caches", is_flag=True, help="Leave out directories marked with a CACHEDIR.TAG.")
@click.option("--tag", "tags", metavar="K=V", multiple=True, callback=options.tags, help="Keep a note with the point.")
@click.option("--force-full", is_flag=True, help="Read every file, even where nothing seems to have changed.")
@click.option("--dry-run", is_flag=True, help="Tell what would be read, and store nothing.")
@options.vault_option
@options.json_option
@click.pass_context
def backup(
    context: click.Context,
    paths: tuple[bytes, ...],
    excludes: tuple[str, ...],
    exclude_files: tuple[str, ...],
    one_file_system: bool,
    exclude_caches: bool,
    tags: dict[str, str],
    force_full: bool,
    dry_run: bool,
    vault: str | None,
    as_json: bool,
) -> None:
    """Protect files and folders: make a recovery point.

    Only what changed since this machine's last point is read, and only what the vault lacks is stored. A file that
    cannot be read is named, and the rest goes on (exit code 3).

    Example: backdrive backup /home /etc --exclude '*.iso' --exclude-caches
    """
    from cas.agent.runs import BackupOptions, run_backup
    from cas.tasks.retention import RETAIN_TAG, check_retain

    if RETAIN_TAG in tags:
        check_retain(tags[RETAIN_TAG])
    asked = BackupOptions(
        paths=list(paths),
        excludes=list(excludes),
        exclude_files=list(exclude_files),
        one_file_system=one_file_system,
        exclude_caches=exclude_caches,
        tags=tags,
        force_full=force_full,
        dry_run=dry_run,
    )
    edge = options.edge()
    with options.session(vault) as session, render.progress(as_json) as listen:
        result = run_backup(session, asked, edge, listen)
    if as_json:
        render.document(_document(result, dry_run))
    else:
        render.show_warnings(result.warnings)
        render.line(_summary(result))
    context.exit(edge.warned if result.warnings else 0)


def _document(result: BackupResult, dry_run: bool) -> dict[str, object]:
    return {
        "point": None if result.point is None else render.point_document(result.point),
        "dry_run": dry_run,
        "stats": result.stats,
        "warnings": render.warning_documents(result.warnings),
    }


def _summary(result: BackupResult) -> str:
    count = result.stats
    seen = (
        f"{render.plural(count.get('files', 0), 'file')}, {render.size(count.get('size', 0))} "
        f"({count.get('new', 0):,} new, {count.get('changed', 0):,} changed, {count.get('unchanged', 0):,} unchanged)"
    )
    warnings = f", {render.plural(len(result.warnings), 'warning')}" if result.warnings else ""
    point = result.point
    if point is None:
        return f"Dry run: {seen}{warnings}; nothing was stored."
    seconds = (point.finished - point.started) / 1e9
    return (
        f"Point {point.id[:8]} ({point.mode}): {seen}, {render.size(count.get('added', 0))} added to the vault, "
        f"{seconds:.1f} s{warnings}."
    )
