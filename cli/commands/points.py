"""`backdrive points`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.agent.session import Session
    from cas.model import Point
    from cas.tasks.deleted import DeletedPoint
    from cas.tasks.retention import Verdict

_ROW_HEAD = ("id", "time", "machine", "paths", "files", "size", "added", "mode")


@click.group(invoke_without_command=True)
@click.option("--machine", metavar="M", help="Only the points of this machine.")
@click.option("--path", "inside", metavar="P", type=options.path_type, help="Only the points that protect this path.")
@click.option("--deleted", is_flag=True, help="Those that were deleted and can be taken back.")
@options.vault_option
@options.json_option
@click.pass_context
def points(
    context: click.Context,
    machine: str | None,
    inside: bytes | None,
    deleted: bool,
    vault: str | None,
    as_json: bool,
) -> None:
    """List the recovery points, newest last.

    Times are local to the place where the point was taken.

    Example: backdrive points --machine laptop --path /home
    """
    if context.invoked_subcommand is not None:
        return
    if deleted:
        _list_deleted(context, machine, vault, as_json)
    from cas.agent.session import list_points
    from cli.main import exit_code

    with options.session(vault) as session:
        found, problems = list_points(session, machine, options.inner_path(inside))
        verdicts = _verdicts(session)
    if as_json:
        render.document([{**render.point_document(point), **_kept_document(verdicts, point)} for point in found])
    else:
        rows = [(*_row(point), *_kept(verdicts, point)) for point in found]
        head = (*_ROW_HEAD, "tiers", "expires") if verdicts else _ROW_HEAD
        for row in render.columns([head, *rows] if rows else [], right=(4, 5, 6)):
            render.line(row)
        if not found:
            render.note("There are no recovery points" + (" of that kind." if machine or inside else " yet."))
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)


def _verdicts(session: Session) -> dict[str, Verdict]:
    """What this machine's policy says of each of its points; nothing where it has none."""
    from cas.agent.retention import judge, read_policy
    from cas.repository import Problems

    policy = read_policy(session.home, session.registration.name)
    if policy is None:
        return {}
    return judge(session, session.repository.points(Problems()), policy, options.edge().clock())


def _kept(verdicts: dict[str, Verdict], point: Point) -> tuple[str, ...]:
    if not verdicts:
        return ()
    verdict = verdicts.get(point.id)
    if verdict is None:
        return ("", "")
    when = "never" if verdict.expires is None else render.time(verdict.expires) if verdict.expires else "now"
    return (",".join(verdict.tiers) or "-", verdict.reason or when)


def _kept_document(verdicts: dict[str, Verdict], point: Point) -> dict[str, object]:
    verdict = verdicts.get(point.id)
    if verdict is None:
        return {}
    expires = render.iso_time(verdict.expires) if verdict.expires else None
    return {"retention": {"tiers": verdict.tiers, "expires": expires, "keep": verdict.keep, "reason": verdict.reason}}


def _row(point: Point) -> tuple[str, ...]:
    from cas.tasks.choose import point_time

    return (
        point.id[:8],
        point_time(point).replace("T", " "),
        point.machine,
        " ".join(map(render.path, point.paths)),
        f"{point.stats.files:,}",
        render.size(point.stats.size),
        render.size(point.stats.added),
        point.mode,
    )


def _list_deleted(context: click.Context, machine: str | None, vault: str | None, as_json: bool) -> None:
    from cas.agent.upkeep import list_deleted
    from cli.main import exit_code

    with options.session(vault) as session:
        found, problems = list_deleted(session, machine)
    if as_json:
        render.document([_deleted_document(known) for known in found])
    else:
        rows = [(*_row(known.point)[:4], render.time(known.deleted), render.time(known.purge_after)) for known in found]
        for row in render.columns([(*_ROW_HEAD[:4], "deleted", "kept until"), *rows] if rows else []):
            render.line(row)
        if not found:
            render.note("There are no deleted points.")
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)


def _deleted_document(known: DeletedPoint) -> dict[str, object]:
    return {
        **render.point_document(known.point),
        "deleted": render.iso_time(known.deleted),
        "purge_after": render.iso_time(known.purge_after),
    }


@points.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--purge-now", is_flag=True, help="For good: it cannot be taken back. Asks for a phrase to be typed.")
@click.option("--yes-purge", metavar="PHRASE", help="The phrase, for scripts.")
@options.vault_option
@options.json_option
def delete(ids: tuple[str, ...], purge_now: bool, yes_purge: str | None, vault: str | None, as_json: bool) -> None:
    """Delete recovery points. They can be taken back for 14 days, unless they are purged.

    Space is given back by 'backdrive collect', after those days. With --purge-now the next collect gives it back.

    Example: backdrive points delete 3f2a81c0 b77e1d92
    """
    from cas.agent.upkeep import points_to_delete, run_delete
    from cas.tasks.choose import point_time
    from cas.tasks.delete import confirmation

    with options.session(vault) as session:
        found = points_to_delete(session, list(ids), also_deleted=purge_now)
        if purge_now:
            _must_type(confirmation(found), yes_purge, found)
        done = run_delete(session, found, options.edge(), purge_now=purge_now)
    if as_json:
        render.document([_deleted_document(known) for known in done])
        return
    for known in done:
        what = f"Point {known.point.id[:8]} of {point_time(known.point).replace('T', ' ')}"
        if purge_now:
            render.line(
                f"{what} is deleted for good. 'backdrive collect' gives its space back, unless a drive shows it."
            )
        else:
            render.line(f"{what} is deleted. It can be taken back until {render.time(known.purge_after)}.")


def _must_type(phrase: str, given: str | None, found: list[Point]) -> None:
    """Go on only where the phrase is given. Raises InvalidRequest, click.Abort."""
    from cas.errors import InvalidRequest

    if given is None and options.on_terminal():
        click.echo(f"{render.plural(len(found), 'point')} will be gone for good.", err=True)
        given = str(click.prompt(f"Type '{phrase}' to go on", default="", show_default=False, err=True))
    if given is None or given.strip() != phrase:
        raise InvalidRequest(
            "Nothing was deleted: purging needs its phrase.", f"Type it when asked, or add --yes-purge '{phrase}'."
        )


@points.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@options.vault_option
@options.json_option
def undelete(ids: tuple[str, ...], vault: str | None, as_json: bool) -> None:
    """Take deleted recovery points back.

    Example: backdrive points undelete 3f2a81c0
    """
    from cas.agent.upkeep import run_undelete
    from cas.tasks.choose import point_time

    with options.session(vault) as session:
        found = run_undelete(session, list(ids), options.edge())
    if as_json:
        render.document([render.point_document(point) for point in found])
        return
    for point in found:
        render.line(f"Point {point.id[:8]} of {point_time(point).replace('T', ' ')} is back.")
