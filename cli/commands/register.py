"""`backdrive register`."""

from __future__ import annotations

import time

import click

from cli import options, render


@click.command()
@click.argument("place", metavar="VAULT")
@click.option("--machine", metavar="NAME", help="What to call this machine; its host name unless given.")
@click.option("--new-repository", is_flag=True, help="Make a repository, whatever the passphrase opens.")
@click.option("--take-over", is_flag=True, help="Continue the history of a machine that this one replaces.")
@click.option("--name", metavar="NAME", help="What to call the vault here; the last part of its path unless given.")
@options.passphrase_option
def register(
    place: str,
    machine: str | None,
    new_repository: bool,
    take_over: bool,
    name: str | None,
    passphrase_file: str | None,
) -> None:
    """Register this machine with a vault: join the repository that the passphrase opens, else make one.

    Machines that share a repository share what they have in common. From here on this machine needs no passphrase: it
    keeps a sealed key.

    Example: backdrive register /mnt/disk/vault --machine laptop
    """
    from cas.agent.registration import RegisterRequest, register_machine

    passphrase, generated = options.new_passphrase(passphrase_file, "BACKDRIVE_PASSPHRASE", "--passphrase-file")
    request = RegisterRequest(
        vault=place,
        machine=machine,
        passphrase=passphrase,
        generated=generated,
        new_repository=new_repository,
        take_over=take_over,
        name=name,
        now=time.time_ns(),
    )
    done = register_machine(
        options.home(), request, lambda message: options.confirm(message, "Make a new repository with it?")
    )
    known = done.registration
    what = "made the repository" if done.created else "joined the repository"
    render.line(
        f"Registered the machine '{known.machine}' with the vault '{known.name}': {what} {known.repository[:8]}."
    )
    if not known.recorded:
        render.note("The vault cannot be written now: points can be listed, mounted and restored; backups need more.")
    if done.created:
        render.note(
            "Keep the passphrase in a safe place away from this machine: who loses every passphrase and every "
            "registered machine has lost the data, and nobody can bring it back."
        )
