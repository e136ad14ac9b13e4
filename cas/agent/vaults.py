"""Making vaults."""

from __future__ import annotations

from cas import repository
from cas.vault import locate


def create_vault(url: str) -> str:
    """Make an empty vault; returns its URL.

    Raises InvalidRequest for a place that is a vault already or holds something else, and the vault's errors.
    """
    vault = locate.create_vault(url, repository.vault_header())
    try:
        return vault.url
    finally:
        vault.close()
