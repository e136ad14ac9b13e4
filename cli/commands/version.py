"""`backdrive version`."""

from __future__ import annotations

import platform

import click

from cli import options, render


@click.command()
@options.json_option
def version(as_json: bool) -> None:
    """Show the version, and that of the vault format that it writes.

    Example: backdrive version
    """
    from cas import __version__
    from cas.store.formats import FORMAT_VERSION

    if as_json:
        render.document({"version": __version__, "format": FORMAT_VERSION, "python": platform.python_version()})
    else:
        render.line(f"backdrive {__version__}, vault format {FORMAT_VERSION}, Python {platform.python_version()}")
