"""What not to protect: patterns as in a .gitignore, over absolute paths.

A pattern without a slash matches a name anywhere; one with a slash is anchored at `/` (or at a drive on Windows); a
slash at the end matches directories only; `!` takes back. The matching is pathspec's.
"""

from __future__ import annotations

import os

from cas.errors import InvalidRequest

_CACHEDIR_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/


class Excluder:
    """Tells whether a path is excluded."""

    def __init__(self, patterns: list[str]) -> None:
        """Raises InvalidRequest, naming the pattern that does not parse."""
        from pathspec import GitIgnoreSpec  # only those who exclude pay for the import

        for pattern in patterns:
            try:
                GitIgnoreSpec.from_lines([pattern])
            except ValueError as error:
                raise InvalidRequest(f"The exclusion pattern '{pattern}' does not parse: {error}.") from None
        self._spec = GitIgnoreSpec.from_lines(patterns)

    def __call__(self, path: bytes, directory: bool) -> bool:
        """Whether the absolute `path` is excluded."""
        text = os.fsdecode(path).lstrip("/")
        return bool(text) and self._spec.match_file(text + "/" if directory else text)


def is_cache_directory(tag: bytes) -> bool:
    """Whether the content of a CACHEDIR.TAG marks its directory as a cache."""
    return tag.startswith(_CACHEDIR_SIGNATURE)
