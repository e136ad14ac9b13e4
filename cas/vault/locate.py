"""From what a person types to a vault: a directory path or a `file:` URL."""

from __future__ import annotations

import os
import re
import sys
import urllib.parse

from cas.errors import InvalidRequest
from cas.vault.base import Vault
from cas.vault.local import LocalVault, url_of

# Two letters at least: `C:\x` is a path. A colon alone makes no scheme, for a directory may be called `home:2024`;
# but nobody means a directory called `file:`.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://|(file):", re.IGNORECASE)
_ADVICE = "Give a directory, or a file:// URL."


def open_vault(url: str) -> Vault:
    """The vault at `url`. Raises InvalidRequest, VaultMissing, VaultUnavailable."""
    return LocalVault.open(_local_path(url))


def create_vault(url: str, header: bytes) -> Vault:
    """Make a vault at `url` with `header` as its object `vault.json`.

    Raises InvalidRequest for a place that is a vault already or holds something else, VaultReadOnly, NoSpace,
    VaultUnavailable.
    """
    return LocalVault.create(_local_path(url), header)


def canonical_url(url: str) -> str:
    """The one URL of the place: `file:///abs/path`. Links are not followed. Raises InvalidRequest."""
    return url_of(os.path.abspath(_local_path(url)))


def _local_path(url: str) -> str:
    """The directory that `url` names; a relative path stays one. Messages never repeat a URL: it may hold a secret."""
    scheme = _SCHEME.match(url)
    path = url
    if scheme:
        kind = (scheme[1] or scheme[2]).lower()
        if kind in ("azure", "https"):
            raise InvalidRequest(f"Vaults in Azure Blob Storage ({kind}://) are not supported yet.", _ADVICE)
        if kind != "file":
            raise InvalidRequest(f"There are no vaults of the kind {kind}://.", _ADVICE)
        path = _file_url_path(url[len("file:") :])
    if not path:
        raise InvalidRequest("The vault's path is empty.", _ADVICE)
    if "\0" in path:
        raise InvalidRequest("The vault's path holds a NUL character.", _ADVICE)
    return path


def _file_url_path(rest: str) -> str:
    """The path in a `file:` URL, `rest` being what follows its colon (RFC 8089)."""
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.lower() not in ("", "localhost"):
        raise InvalidRequest("A file:// URL cannot name another computer.", "Write file:///path, with three slashes.")
    if not rest.startswith("/"):
        raise InvalidRequest("A file:// URL needs an absolute path.", "Write file:///path, with three slashes.")
    if "?" in rest or "#" in rest:
        raise InvalidRequest("A file:// URL has no query or fragment.", "Write %3F for a question mark and %23 for #.")
    path = os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode(rest)))  # a path need not be UTF-8
    if sys.platform == "win32" and re.match(r"/[A-Za-z]:", path):
        path = path[1:]  # /C:/x
    return path
