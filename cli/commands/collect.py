"""`backdrive collect`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.tasks.collect import CollectReport, Waiting

_TIME = re.compile(r"([0-9]{1,9})\s*([smhd]?)")
_SECONDS = {"s": 1, "": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(_context: click.Context, _parameter: click.Parameter, given: str) -> int:
    found = _TIME.fullmatch(given.strip())
    if found is None:
        raise click.BadParameter(f"'{given}' is no span of time, such as 30m or 2h")
    return int(found[1]) * _SECONDS[found[2]]


@click.command()
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and change nothing.")
@click.option(
    "--max-unused",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    default=10.0,
    show_default=True,
    help="Write packs anew until at most this share of the repository is unused.",
)
@click.option(
    "--max-repack",
    metavar="SIZE",
    callback=options.size_at_least(0),
    help="Write at most so much anew in this run, such as 20G.",
)
@click.option(
    "--grace",
    metavar="TIME",
    callback=_seconds,
    default="1h",
    show_default=True,
    help="How long packs stay after they were condemned; 0 deletes them in the same run.",
)
@options.vault_option
@options.json_option
@click.pass_context
def collect(
    context: click.Context,
    dry_run: bool,
    max_unused: float,
    max_repack: int | None,
    grace: int,
    vault: str | None,
    as_json: bool,
) -> None:
    """Give back the space of what no recovery point needs any more.

    Backups, drives and other collects may run at the same time. Garbage is first condemned, and deleted by a later run,
    when no backup that was at work can need it any more; what is still waiting is told with the time. A restore that
    was begun before the packs it reads were moved may have to be run again.

    Example: backdrive collect --max-unused 5
    """
    from cas.agent.upkeep import run_collect
    from cas.tasks.collect import CollectRequest

    edge = options.edge()
    with options.session(vault) as session, render.progress(as_json) as listen:
        request = CollectRequest(
            machine=session.registration.machine_id,
            max_unused=max_unused,
            max_repack=max_repack,
            grace=grace * 1_000_000_000,
            dry_run=dry_run,
        )
        report = run_collect(session, request, edge, listen)
    if as_json:
        render.document(_document(report, dry_run))
    else:
        for text in _lines(report, dry_run):
            render.line(text)
        for note in report.notes:
            render.note(f"note: {note}")
    render.show_problems(report.problems)
    context.exit(edge.warned if report.problems else 0)


def _document(report: CollectReport, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "points": report.points,
        "deleted_points": report.deleted_points,
        "purged": report.purged,
        "packs": report.packs,
        "used": report.used,
        "unused": report.unused,
        "condemned": report.condemned,
        "condemned_size": report.condemned_size,
        "repacked": report.repacked,
        "copied": report.copied,
        "deleted": report.deleted,
        "freed": report.freed,
        "segments_before": report.segments_before,
        "segments": report.segments,
        "missing": report.missing,
        "waiting": [
            {"packs": each.packs, "size": each.size, "until": render.iso_time(each.until), "why": each.why}
            for each in report.waiting
        ],
        "notes": report.notes,
        "problems": [str(error) for error in report.problems],
    }


def _lines(report: CollectReport, dry_run: bool) -> list[str]:
    would = "Would have " if dry_run else ""
    lines = [
        f"{render.plural(report.points, 'point')} and {render.plural(report.deleted_points, 'deleted point')} need "
        f"{render.size(report.used)}; {render.size(report.unused)} beside it "
        f"{'would stay' if dry_run else 'stay'} unused."
    ]
    if report.purged:
        verb = "purged" if dry_run else "Purged"
        lines.append(f"{would}{verb} {render.plural(report.purged, 'deleted point')} whose time is over.")
    if report.condemned:
        verb = "condemned" if dry_run else "Condemned"
        lines.append(
            f"{would}{verb} {render.plural(report.condemned, 'pack')} of {render.size(report.condemned_size)}"
            + (f", of which {report.repacked:,} written anew." if report.repacked else ".")
        )
    verb = "freed" if dry_run else "Freed"
    lines.append(f"{would}{verb} {render.size(report.freed)} in {render.plural(report.deleted, 'pack')}.")
    by_reason: dict[str, list[Waiting]] = {}
    for each in report.waiting:
        by_reason.setdefault(each.why, []).append(each)
    for why, waiting in by_reason.items():
        lines.append(
            f"{render.size(sum(each.size for each in waiting))} in "
            f"{render.plural(sum(each.packs for each in waiting), 'pack')} wait: {why}. "
            f"A collect after {render.time(max(each.until for each in waiting))} frees them."
        )
    return lines
