"""`backdrive cache`."""

from __future__ import annotations

import click

from cli import options, render


@click.group()
def cache() -> None:
    """Rebuild or clear this machine's cache. The vault holds everything that it holds."""


@cache.command()
@options.vault_option
@click.pass_context
def rebuild(context: click.Context, vault: str | None) -> None:
    """Make the index anew from what is in the vault, even where its index segments are lost.

    Example: backdrive cache rebuild
    """
    from cli.main import exit_code

    with options.session(vault) as session:
        found, problems = session.repository.rebuild()
        chunks = session.repository.index.chunk_count()
    adopted = f", {render.plural(found, 'pack')} of them read again as no index named them" if found else ""
    render.line(f"The index is rebuilt: {render.plural(chunks, 'chunk')}{adopted}.")
    render.show_problems(problems.errors)
    context.exit(exit_code(problems.errors[0]) if problems.errors else 0)


@cache.command()
@options.vault_option
def clear(vault: str | None) -> None:
    """Remove the cache. The next command makes it anew, which takes a while.

    Example: backdrive cache clear
    """
    from cas.agent.session import clear_cache

    registration = clear_cache(options.home(), vault)
    render.line(f"The cache of the vault '{registration.name}' is removed.")
