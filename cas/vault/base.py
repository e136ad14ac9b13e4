"""The vault protocol and its promises.

A vault holds named objects. A name is a relative path of ASCII letters, digits, `.`, `-`, `_` with `/` between its
parts; no part is `.` or `..` or empty. The engine gives every object a name that is random or a hash of its content.

Promises that every implementation keeps, and that `tests/contracts` proves:

- **durable**: when `put` returns, the object survives a power cut.
- **atomic**: an object is either absent or whole; a reader never sees a part of it, whatever is killed when.
- **read after write**: when `put` returns, `get`, `size` and `list` of any client see the object.
- **write once**: `put` of a name that exists leaves the object as it is. With the same bytes it succeeds, so a retry
  after an unknown outcome is harmless; with other bytes it raises `ObjectExists`. Two racing writers: exactly one wins.
- **retry**: an implementation may repeat any operation after a passing fault; all of them are idempotent.
- **thread safe**: every method may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from typing_extensions import Buffer


class VaultEntry(NamedTuple):
    """One object as a listing shows it."""

    name: str
    size: int  # bytes


class Vault(Protocol):
    """A place for write-once objects. Raises the vault errors of `cas.errors`; InvalidRequest for a bad name."""

    @property
    def url(self) -> str:
        """Where it is, for people: never with credentials in it."""

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Store the concatenation of `parts` under `name`.

        Raises ObjectExists, VaultReadOnly, NoSpace, VaultUnavailable, VaultMissing.
        """

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`, at most `length` of them (all, where None). Fewer where the object ends.

        Raises ObjectMissing, VaultUnavailable, VaultMissing.
        """

    def size(self, name: str) -> int:
        """Bytes in the object. Raises ObjectMissing, VaultUnavailable, VaultMissing."""

    def list(self, prefix: str) -> Iterator[VaultEntry]:
        """Every object whose name starts with `prefix` (which is empty or ends in `/`), in no promised order.

        Raises VaultUnavailable, VaultMissing. A prefix under which nothing lives gives nothing.
        """

    def delete(self, name: str) -> None:
        """Remove the object; one that is absent already is no error.

        Raises VaultReadOnly, VaultUnavailable, VaultMissing.
        """

    def close(self) -> None:
        """Give back connections and descriptors. The vault is not used afterwards."""


@runtime_checkable
class Forgetful(Protocol):
    """A vault that keeps copies of what it has read."""

    def forget(self, name: str) -> None:
        """Throw away the copies of an object: it was not what was written. No error where there are none."""
