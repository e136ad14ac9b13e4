"""`backdrive mount`, `unmount` and `mounts`: recovery points as drives."""

from __future__ import annotations

from pathlib import Path

import click

from cli import options, render


@click.command()
@click.argument("arguments", metavar="[POINT] TARGET", nargs=-1, required=True)
@click.option("--foreground", is_flag=True, help="Stay here until the drive is closed, and log to standard error.")
@options.vault_option
@click.pass_context
def mount(context: click.Context, arguments: tuple[str, ...], foreground: bool, vault: str | None) -> None:
    """Open a recovery point as a read-only drive at the directory TARGET; without POINT, all of them.

    Returns when the drive is ready and leaves it running. All points are shown as TARGET/MACHINE/DATE TIME/..., and the
    newest as TARGET/MACHINE/latest.

    Example: backdrive mount latest /mnt/drive
    """
    from cas.agent.session import open_access
    from mount import drives

    if len(arguments) > 2:
        raise click.UsageError("Give one point at most, and one target.", context)
    home = options.home()
    target = Path(arguments[-1]).absolute()
    access = open_access(home, vault, arguments[0] if len(arguments) == 2 else None)
    request = drives.DriveRequest(
        vault=access.registration.vault,
        repository=access.registration.repository,
        secret=access.secret,
        cache=home.cache,
        point=access.point,
        target=target,
        records=home.drives,
        log=None if foreground else home.logs / "drives.log",
        vault_name=access.registration.name,
    )
    if foreground:
        import logging

        from mount.serve import run

        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        run(request, lambda: render.note(f"The drive is open at {target}. Ctrl-C closes it."))
        return
    drives.start(request)
    render.line(f"The drive is open at {target}.")


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path, readable=False))
def unmount(target: Path) -> None:
    """Close the drive at TARGET, and clean up after one whose process has died.

    Example: backdrive unmount /mnt/drive
    """
    from mount import drives

    drives.stop(target.absolute(), options.home().drives)
    render.line(f"The drive at {target} is closed.")


@click.command()
@options.json_option
def mounts(as_json: bool) -> None:
    """List the drives that are open.

    Example: backdrive mounts --json
    """
    from mount import drives

    found = drives.list_drives(options.home().drives)
    if as_json:
        render.document(
            [
                {
                    "target": drive.target,
                    "vault": drive.vault,
                    "point": None if drive.point == drives.ALL_POINTS else drive.point,
                    "since": render.iso_time(drive.since),
                    "pid": drive.pid,
                    "alive": drive.alive,
                    "log": drive.log,
                }
                for drive in found
            ]
        )
        return
    rows = [
        (
            drive.target,
            drive.vault,
            drive.point[:8] if drive.point != drives.ALL_POINTS else "all points",
            render.time(drive.since),
            "" if drive.alive else "dead: close it with 'backdrive unmount'",
        )
        for drive in found
    ]
    for row in render.columns([("target", "vault", "point", "since", ""), *rows] if rows else []):
        render.line(row)
    if not found:
        render.note("No drives are open.")
