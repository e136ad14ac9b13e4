"""`backdrive mount`, `unmount` and `mounts`: recovery points as drives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cli import options, render

if TYPE_CHECKING:
    from cas.agent.home import Home
    from mount.drives import Counters, Drive, DriveRequest, Ready

_LEAST_CACHE: Final = 16 << 20
_LEAST_DISK_CACHE: Final = 64 << 20


def _size_and_place(
    context: click.Context, parameter: click.Parameter, given: str | None
) -> tuple[int, Path | None] | None:
    """The callback of `--disk-cache SIZE[:DIR]`; the directory is None where it is not given."""
    if given is None:
        return None
    size, colon, directory = given.partition(":")
    if colon and not directory:
        raise click.BadParameter("No directory stands after the colon.")
    limit = options.size_at_least(_LEAST_DISK_CACHE)(context, parameter, size)
    assert limit is not None
    return limit, Path(directory).absolute() if directory else None


def _machine(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """The callback of `--machine`."""
    if given is not None and not given.strip():
        raise click.BadParameter("Give a machine's name, as 'backdrive points' shows it.")
    return given


def _absolute(context: click.Context, parameter: click.Parameter, given: bytes | None) -> bytes | None:
    """The callback of `--path`: it is one in the points, wherever the command is typed."""
    if given is not None and not os.path.isabs(given):
        raise click.BadParameter(f"'{render.path(given)}' is not absolute. Give the path as it was backed up.")
    return given


@click.command()
@click.argument("arguments", metavar="[POINT[:/FOLDER]] TARGET", nargs=-1, required=True)
@click.option("--layout", type=click.Choice(["time", "gmt"]), help="How points are named; gmt is for Samba.")
@click.option("--machine", metavar="M", callback=_machine, help="Only the points of this machine.")
@click.option(
    "--path",
    "inside",
    metavar="P",
    type=options.path_type,
    callback=_absolute,
    help="Only the points that protect this path.",
)
@click.option("--since", metavar="TIME", help="Only points from TIME on: 2026-11, 2026-11-22T07:30, 30d, 12h, 8w, 2y.")
@click.option("--tag", "tags", metavar="K=V", multiple=True, callback=options.tags, help="Only points with this tag.")
@click.option(
    "--allow-other/--no-allow-other", default=None, help="Let other users in, or not. Default: if you are root."
)
@click.option("--uid", metavar="USER", callback=options.account("user"), help="Show everything as this user's.")
@click.option("--gid", metavar="GROUP", callback=options.account("group"), help="Show everything as this group's.")
@click.option("--umask", metavar="OCTAL", callback=options.umask, help="Take these bits from all modes.")
@click.option(
    "--cache-size",
    metavar="SIZE",
    callback=options.size_at_least(_LEAST_CACHE, in_memory=True),
    help="Memory for what was read. Default: 128M.",
)
@click.option(
    "--disk-cache", metavar="SIZE[:DIR]", callback=_size_and_place, help="Keep what was read on disk, sealed."
)
@click.option("--foreground", is_flag=True, help="Stay here until the drive is closed, and log to standard error.")
@options.vault_option
@click.pass_context
def mount(
    context: click.Context, /, arguments: tuple[str, ...], foreground: bool, vault: str | None, **given: Any
) -> None:
    """Open a recovery point as a read-only drive at the directory TARGET; without POINT, all of them.

    Returns when the drive is ready and leaves it running. All points are shown as TARGET/MACHINE/DATE TIME/..., and the
    newest as TARGET/MACHINE/latest. With --layout gmt they are TARGET/MACHINE/@GMT-.../..., and, with --machine,
    TARGET/@GMT-.../...: Samba shows them as previous versions of a share.

    \b
    Example: backdrive mount /mnt/points --machine laptop --since 30d
    Example: backdrive mount latest:/srv/projects /mnt/drive
    """
    from cas.agent.session import open_access
    from mount import drives

    if len(arguments) > 2:
        raise click.UsageError("Give one point at most, and one target.", context)
    point, folder = _point_and_folder(arguments[0]) if len(arguments) == 2 else (None, None)
    settings = _settings(context, point, given)
    home = options.home()
    target = Path(arguments[-1]).absolute()
    access = open_access(home, vault, point)
    request = drives.DriveRequest(
        vault=access.registration.vault,
        repository=access.registration.repository,
        secret=access.secret,
        cache=home.cache,
        point=access.point,
        folder=folder,
        target=target,
        records=home.drives,
        log=None if foreground else home.logs / "drives.log",
        machine=access.registration.machine_id,
        vault_name=access.registration.name,
        **settings,
        **_disk_cache(given["disk_cache"], home, access.registration.repository),
    )
    if foreground:
        import logging

        from mount.serve import run

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        run(request, lambda told: _tell(told, request, " Ctrl-C closes it.", render.note))
        return
    _tell(drives.start(request), request, "", render.line)


def _tell(told: Ready, request: DriveRequest, more: str, say: Callable[[str], None]) -> None:
    say(f"The drive is open at {render.path(os.fsencode(request.target))}.{more}")
    if told.machines:
        asked = render.path(os.fsencode(request.only.machine or ""))
        known = ", ".join(render.path(os.fsencode(machine)) for machine in told.machines)
        render.note(f"No machine named '{asked}' has recovery points yet. Those that have: {known}.")
    if not told.points:
        render.note("It shows no recovery point yet; it will when there is one.")


def _point_and_folder(text: str) -> tuple[str, str | None]:
    """`POINT:/folder` in two. A point's time has colons too, but none before a slash."""
    point, colon, below = text.partition(":/")
    return (point, os.path.normpath("/" + below.lstrip("/"))) if colon else (text, None)


def _settings(context: click.Context, point: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of the request that options fill. Raises UsageError where one does not go with a point."""
    from mount.filters import PointFilter, check_since

    inside = options.inner_path(given["inside"])
    since = given["since"]
    only = PointFilter(
        machine=given["machine"],
        path=None if inside is None else os.fsdecode(inside),
        since=None if since is None else check_since(since),
        tags=given["tags"],
    )
    if point is not None and (only or given["layout"] is not None):
        raise click.UsageError(
            "--layout, --machine, --path, --since and --tag choose among all points: leave POINT out.", context
        )
    settings = {name: given[name] for name in ("allow_other", "uid", "gid", "umask")}
    if given["cache_size"] is not None:
        settings["cache_bytes"] = given["cache_size"]
    return {**settings, "only": only, "layout": given["layout"] or "time"}


def _disk_cache(given: tuple[int, Path | None] | None, home: Home, repository: str) -> dict[str, Any]:
    if given is None:
        return {}
    size, directory = given
    return {"disk_cache": directory or home.cache / repository / "vault", "disk_cache_bytes": size}


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path, readable=False))
def unmount(target: Path) -> None:
    """Close the drive at TARGET, and clean up after one whose process has died.

    Example: backdrive unmount /mnt/drive
    """
    from mount import drives

    drives.stop(target.absolute(), options.home().drives)
    render.line(f"The drive at {render.path(os.fsencode(target))} is closed.")


@click.command()
@options.json_option
def mounts(as_json: bool) -> None:
    """List the drives that are open.

    Example: backdrive mounts --json
    """
    from mount import drives

    records = options.home().drives
    found = [(drive, drives.read_counters(records, drive)) for drive in drives.list_drives(records)]
    if as_json:
        render.document([_document(drive, counters) for drive, counters in found])
        return
    rows = [_row(drive, counters) for drive, counters in found]
    head = ("target", "vault", "point", "since", "reads", "read", "cache hits", "errors", "")
    for row in render.columns([head, *rows] if rows else [], right=(4, 5, 6, 7)):
        render.line(row)
    if not found:
        render.note("No drives are open.")


def _document(drive: Drive, counters: Counters | None) -> dict[str, Any]:
    """A drive for JSON; its counters are null where it does not tell them."""
    from mount.drives import ALL_POINTS

    names = ("requests", "reads", "read_bytes", "cache_hits", "cache_misses", "errors")
    return {
        "target": drive.target,
        "vault": drive.vault,
        "point": None if drive.point == ALL_POINTS else drive.point,
        "shows": drive.shows,
        "since": render.iso_time(drive.since),
        "pid": drive.pid,
        "alive": drive.alive,
        "log": drive.log,
        **{name: None if counters is None else getattr(counters, name) for name in names},
    }


def _row(drive: Drive, counters: Counters | None) -> tuple[str, ...]:
    from mount.drives import ALL_POINTS

    if drive.point == ALL_POINTS:
        point = f"all points ({drive.shows})" if drive.shows else "all points"
    else:
        point = drive.point[:8] + (f":{drive.shows}" if drive.shows else "")
    told = ("", "", "", "")
    if counters is not None:
        asked = counters.cache_hits + counters.cache_misses
        hits = f"{100 * counters.cache_hits // asked} %" if asked else ""
        told = (f"{counters.reads:,}", render.size(counters.read_bytes), hits, f"{counters.errors:,}")
    state = "" if drive.alive else "dead: close it with 'backdrive unmount'"
    return render.path(os.fsencode(drive.target)), drive.vault, point, render.time(drive.since), *told, state
