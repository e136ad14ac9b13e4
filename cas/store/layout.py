"""The names of a repository's objects inside its vault."""

from __future__ import annotations

import secrets
from typing import Final

from cas.ids import PackId, RepositoryId
from cas.store.formats import PackKind

VAULT_HEADER: Final = "vault.json"
REPOSITORIES: Final = "repositories/"
_PACK_FOLDERS: Final = {PackKind.DATA: "data", PackKind.TREE: "tree"}


class Layout:
    """Names under `repositories/<id>/`. Prefixes end in a slash."""

    def __init__(self, repository: RepositoryId) -> None:
        self.root: Final = f"{REPOSITORIES}{repository}/"
        self.header: Final = self.root + "repository.json"
        self.keys: Final = self.root + "keys/"
        self.index: Final = self.root + "index/"
        self.points: Final = self.root + "points/"
        self.machines: Final = self.root + "machines/"
        self.sessions: Final = self.root + "sessions/"
        self.deleted: Final = self.root + "deleted/"
        self.condemned: Final = self.root + "condemned/"
        self.purged: Final = self.root + "purged/"

    def segment(self, session: str = "") -> str:
        """A name for a new index segment: it starts with the session whose packs it names, where there is one."""
        return f"{self.index}{session}{'-' if session else ''}{new_id()}"

    def session_of(self, segment: str) -> str:
        """The session that wrote an index segment, or nothing where its name does not tell."""
        session, dash, _ = segment.removeprefix(self.index).partition("-")
        return session if dash else ""

    def packs(self, kind: PackKind) -> str:
        """The prefix of all packs of a kind."""
        return f"{self.root}{_PACK_FOLDERS[kind]}/"

    def pack(self, kind: PackKind, pack: PackId) -> str:
        """The name of a pack."""
        name = pack.hex()
        return f"{self.root}{_PACK_FOLDERS[kind]}/{name[:2]}/{name}"


def new_id() -> str:
    """32 random lower-case hex digits, for an object that is named at random."""
    return secrets.token_hex(16)
