"""`backdrive vault`."""

from __future__ import annotations

import click

from cli import render


@click.group()
def vault() -> None:
    """Create vaults: the places where recovery points are kept."""


@vault.command()
@click.argument("place", metavar="VAULT")
def create(place: str) -> None:
    """Make an empty vault in a new or empty directory.

    VAULT is a directory or a file:// URL.

    Example: backdrive vault create /mnt/disk/vault
    """
    from cas.agent.vaults import create_vault

    url = create_vault(place)
    render.line(f"Made an empty vault at {url}.")
    render.note(f"Next: backdrive register {place}")
