"""`backdrive ls`, `find`, `cat`, `diff` and `versions`: looking into recovery points without a drive."""

from __future__ import annotations

import sys
from typing import Final

import click

from cli import options, render

_SIGNS: Final = {"added": "+", "removed": "-", "content": "M", "metadata": "a", "type": "T"}


@click.command()
@click.argument("point", metavar="POINT")
@click.argument("path", metavar="[PATH]", default=b"/", type=options.path_type)
@click.option("-l", "long", is_flag=True, help="Show mode, links, owner, group, size and time.")
@click.option("-R", "--recursive", is_flag=True, help="Show all that is below, with full paths.")
@options.vault_option
@options.json_option
def ls(point: str, path: bytes, long: bool, recursive: bool, vault: str | None, as_json: bool) -> None:
    """List a directory of a recovery point, its root unless PATH is given.

    Example: backdrive ls latest /home/ada -l
    """
    from cas.tasks import browse

    with options.session(vault) as session:
        reader = session.reader()
        found = browse.ls(reader, session.point(point), options.inner_path(path) or b"/", recursive=recursive)
        if as_json:
            render.document([render.node_document(*entry) for entry in found])
            return
        for name, node, owner in found:
            shown = name if recursive else name.rsplit(b"/", 1)[-1]
            slash = "/" if node.is_directory else ""
            render.line(render.long_line(shown, node, owner) if long else render.path(shown) + slash)


@click.command()
@click.argument("pattern")
@click.option("--point", metavar="POINT", help="Look into this point only.")
@click.option("--machine", metavar="M", help="Look into the points of this machine only.")
@click.option("-i", "--ignore-case", is_flag=True, help="Let capital letters match small ones.")
@options.vault_option
@options.json_option
@click.pass_context
def find(
    context: click.Context,
    pattern: str,
    point: str | None,
    machine: str | None,
    ignore_case: bool,
    vault: str | None,
    as_json: bool,
) -> None:
    """Find files by name in all recovery points; each is shown once, with the newest point that has it.

    A PATTERN with a slash is matched with the whole path; '**' spans directories.

    Example: backdrive find '*.docx' --point latest
    """
    from cas.agent.search import find_everywhere, find_in_point
    from cas.tasks.choose import point_time
    from cli.main import exit_code

    with options.session(vault) as session:
        if point is not None:
            found = find_in_point(session, pattern, point, ignore_case=ignore_case)
        else:
            found = find_everywhere(session, pattern, machine, ignore_case=ignore_case)
        if as_json:
            documents = []
            for entry in found:
                where = {"point": entry.point.id, "machine": entry.point.machine, "time": point_time(entry.point)}
                documents.append({**render.node_document(entry.path, entry.node, None), **where})
            render.document(documents)
        else:
            for entry in found:
                when = point_time(entry.point).replace("T", " ")
                render.line(f"{entry.point.id[:8]}  {when}  {entry.point.machine}  {render.path(entry.path)}")
        problems = session.problems.errors
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)


@click.command()
@click.argument("point", metavar="POINT")
@click.argument("path", metavar="PATH", type=options.path_type)
@options.vault_option
def cat(point: str, path: bytes, vault: str | None) -> None:
    """Write a file of a recovery point to standard output.

    Example: backdrive cat latest /etc/fstab > fstab
    """
    from cas.tasks import browse

    with options.session(vault) as session:
        browse.cat(session.reader(), session.point(point), options.inner_path(path) or b"/", sys.stdout.buffer.write)


@click.command()
@click.argument("before", metavar="POINT")
@click.argument("after", metavar="POINT")
@click.argument("path", metavar="[PATH]", default=b"/", type=options.path_type)
@options.vault_option
@options.json_option
def diff(before: str, after: str, path: bytes, vault: str | None, as_json: bool) -> None:
    """Show what changed from the first point to the second.

    \b
    +  added        M  other content        T  of another type
    -  removed      a  other attributes (mode, owner, time, ...)

    Example: backdrive diff 3f2a91bc latest /home
    """
    from cas.tasks import browse

    with options.session(vault) as session:
        reader = session.reader()
        points = session.point(before), session.point(after)
        found = browse.diff(reader, *points, options.inner_path(path) or b"/")
        if as_json:
            render.document(
                [
                    {
                        "path": render.text(change.path),
                        "change": str(change.kind),
                        "before": change.before and render.node_document(change.path, change.before, None),
                        "after": change.after and render.node_document(change.path, change.after, None),
                    }
                    for change in found
                ]
            )
            return
        for change in found:
            render.line(f"{_SIGNS[change.kind]}  {render.path(change.path)}")


@click.command()
@click.argument("path", metavar="PATH", type=options.path_type)
@click.option("--machine", metavar="M", help="Look at another machine's file.")
@options.vault_option
@options.json_option
@click.pass_context
def versions(context: click.Context, path: bytes, machine: str | None, vault: str | None, as_json: bool) -> None:
    """Show which distinct versions of a file exist, oldest first, and in which points.

    Example: backdrive versions /home/ada/thesis.tex
    """
    from cas.tasks import browse
    from cas.tasks.choose import point_time
    from cli.main import exit_code

    with options.session(vault) as session:
        session.reader()  # brings the index up to date
        whose = machine or session.registration.machine_id
        found = browse.versions(session.repository, whose, options.inner_path(path) or b"/", session.problems)
        problems = session.problems.errors
    if as_json:
        documents = []
        for version in found:
            points = [{"id": point.id, "time": point_time(point)} for point in version.points]
            documents.append({**render.node_document(path, version.node, version.owner), "points": points})
        render.document(documents)
    else:
        rows: list[tuple[str, ...]] = [("modified", "size", "points", "first", "", "last", "")]
        for version in found:
            first, last = version.first, version.last
            ends = [part for point in (first, last) for part in (point.id[:8], point_time(point).replace("T", " "))]
            number = f"{len(version.points):,}"
            rows.append((render.time(version.node.mtime), render.size(version.node.size), number, *ends))
        for row in render.columns(rows, right=(1, 2)):
            render.line(row)
    render.show_problems(problems)
    context.exit(exit_code(problems[0]) if problems else 0)
