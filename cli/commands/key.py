"""`backdrive key` and `backdrive passphrase`: what opens a repository besides its registered machines."""

from __future__ import annotations

import click

from cli import options, render


@click.group()
def key() -> None:
    """List, add and remove the passphrases that open the repository, each in a key slot of its own."""


@key.command("list")
@options.vault_option
@options.json_option
@click.pass_context
def list_(context: click.Context, vault: str | None, as_json: bool) -> None:
    """List the key slots.

    Example: backdrive key list
    """
    from cas.errors import Damaged
    from cli.main import exit_code

    with options.session(vault) as session:
        slots = session.repository.slots.all()
    if as_json:
        render.document([{"id": slot.id, "about": slot.about, "error": slot.error or None} for slot in slots])
    else:
        for row in render.columns([("id", "about"), *((slot.id[:8], slot.error or slot.about) for slot in slots)]):
            render.line(row)
    context.exit(exit_code(Damaged("")) if any(slot.error for slot in slots) else 0)


@key.command()
@click.option("--about", metavar="TEXT", help="What to remember of it; it is kept sealed.")
@options.new_passphrase_option
@options.vault_option
def add(about: str | None, new_passphrase_file: str | None, vault: str | None) -> None:
    """Add one more passphrase that opens the repository.

    Example: backdrive key add --about 'in the safe'
    """
    from cas.agent import passphrases

    with options.session(vault) as session:
        passphrase, _ = options.new_passphrase(new_passphrase_file)
        slot = passphrases.add(session.repository, passphrase, about or f"added on {session.registration.machine}")
    render.line(f"Added the key slot {slot[:8]}.")


@key.command()
@click.argument("slot")
@options.yes_option
@options.vault_option
def remove(slot: str, yes: bool, vault: str | None) -> None:
    """Remove a key slot: its passphrase opens nothing any more. SLOT is the beginning of its id.

    The last one cannot be removed.

    Example: backdrive key remove 3f2a91bc
    """
    from cas.agent import passphrases

    with options.session(vault) as session:
        options.must_confirm(yes, f"Its passphrase will not open the repository any more. Remove the key slot {slot}?")
        removed = passphrases.remove(session.repository, slot)
    render.line(f"Removed the key slot {removed[:8]}.")


@click.group()
def passphrase() -> None:
    """Change the passphrase."""


@passphrase.command()
@options.passphrase_option
@options.new_passphrase_option
@options.vault_option
def change(passphrase_file: str | None, new_passphrase_file: str | None, vault: str | None) -> None:
    """Put a new passphrase in the place of an old one. Nothing in the vault is sealed anew.

    Example: backdrive passphrase change
    """
    from cas.agent import passphrases

    with options.session(vault) as session:
        old = options.passphrase(passphrase_file, "Old passphrase")
        slot = passphrases.verify(session.repository, old)
        new, _ = options.new_passphrase(new_passphrase_file)
        added = passphrases.change(session.repository, slot, new, f"changed on {session.registration.machine}")
    render.line(f"The passphrase is changed: key slot {added[:8]} is in the place of {slot[:8]}.")
    render.note(
        "The repository's own secret stays the same: who knows the old passphrase and kept a copy of the old key slot "
        "can still open the repository."
    )
