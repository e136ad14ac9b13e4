"""The one tree of errors. Each says what happened, where, and what to do next; none carries a vendor's exception type.

`cli/main.py` maps these classes to exit codes; nothing else does.
"""

from __future__ import annotations


class BackdriveError(Exception):
    """A foreseeable fault. `str()` is one paragraph for a person; `advice` says what to do next."""

    advice = ""

    def __init__(self, message: str, advice: str | None = None) -> None:
        super().__init__(message)
        if advice is not None:
            self.advice = advice

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} {self.advice}" if self.advice else message


class InvalidRequest(BackdriveError):
    """What was asked for cannot be done as it was asked (a wrong path, pattern, option or name)."""


# --- the machine and its registration -------------------------------------------------------------------------------


class NotRegistered(BackdriveError):
    """No registration, or not the one named."""

    advice = "Run 'backdrive register VAULT' first."


class WrongPassphrase(BackdriveError):
    """No key slot opens with what was given."""

    advice = "Check the passphrase (BACKDRIVE_PASSPHRASE, --passphrase-file or the prompt) and try again."


class MachineKeyUnusable(BackdriveError):
    """The machine's sealed key file is missing, damaged, or was sealed on another machine."""

    advice = "Run 'backdrive register' again with the passphrase: nothing in the vault is lost."


class CacheUnusable(BackdriveError):
    """The machine's cache cannot be opened or written."""

    advice = "Run 'backdrive cache clear', then 'backdrive cache rebuild': the vault holds everything the cache held."


# --- the vault as a place -------------------------------------------------------------------------------------------


class VaultError(BackdriveError):
    """Something about the vault as a whole; `url` names it."""

    def __init__(self, url: str, message: str, advice: str | None = None) -> None:
        super().__init__(message, advice)
        self.url = url


class VaultMissing(VaultError):
    """There is no vault at the URL."""

    def __init__(self, url: str) -> None:
        super().__init__(
            url,
            f"There is no vault at {url}.",
            "Check that it is mounted or reachable, or make one with 'backdrive vault create'.",
        )


class VaultUnavailable(VaultError):
    """The vault answered with an error that may pass: I/O, network, permission."""

    advice = "Nothing was lost; run the command again when the vault is reachable."


class VaultReadOnly(VaultError):
    """The vault refuses to be written."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            url,
            f"The vault {url} cannot be written: {reason}.",
            "Points in it can still be listed, mounted and restored; backups need write access.",
        )


class NoSpace(BackdriveError):
    """A file system is full. `where` is "vault", "cache" or "restore target"."""

    def __init__(self, where: str, path: str) -> None:
        super().__init__(
            f"No space left for the {where} at {path}.",
            "Free some space and restore again with --conflict overwrite: what is there already is not written twice."
            if where == "restore target"
            else "Free some space and run the command again; what was already stored is kept and will be used.",
        )
        self.where = where
        self.path = path


class ObjectMissing(VaultError):
    """An object that should be in the vault is not."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, f"The object {name} is missing from the vault {url}.", "Run 'backdrive check'.")
        self.name = name


class ObjectExists(VaultError):
    """A write-once object of this name exists with other content."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(url, f"The vault {url} already holds another object named {name}.")
        self.name = name


# --- what is in the vault -------------------------------------------------------------------------------------------


class FormatTooNew(BackdriveError):
    """An object was written by a newer backdrive, or needs a feature this one lacks."""

    def __init__(self, name: str, found: str, known: str) -> None:
        super().__init__(
            f"{name} has format {found}, and this backdrive reads {known}.",
            "Use a newer backdrive; nothing was changed.",
        )
        self.name = name


class Damaged(BackdriveError):
    """Content that does not authenticate, does not parse, or is not what its name promises."""

    advice = "Run 'backdrive check --read-data 100' to see which points and files it touches."


class ObjectDamaged(Damaged):
    """A sealed object (point, index segment, key slot, ...) is not what was written."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The vault object {name} is damaged: {reason}.")
        self.name = name
        self.reason = reason


class PackDamaged(Damaged):
    """A pack, or the block at `offset` bytes in it, is not what was written."""

    def __init__(self, pack: str, offset: int, reason: str) -> None:
        super().__init__(f"The pack {pack} is damaged at byte {offset}: {reason}.")
        self.pack = pack
        self.offset = offset
        self.reason = reason


class ChunkMissing(Damaged):
    """A chunk that a point refers to is in no index segment, or its pack is gone."""

    def __init__(self, chunk: bytes, reason: str = "no index segment names it") -> None:
        super().__init__(
            f"The chunk {chunk.hex()[:16]} cannot be found: {reason}.",
            "Run 'backdrive cache rebuild', then 'backdrive check'.",
        )
        self.chunk = chunk


class TreeDamaged(Damaged):
    """A directory's entries authenticate but do not parse: a fault of the writer."""

    def __init__(self, tree: bytes, reason: str) -> None:
        super().__init__(f"The directory listing {tree.hex()[:16]} is damaged: {reason}.")
        self.tree = tree


# --- points, restore, drives ----------------------------------------------------------------------------------------


class PointNotFound(BackdriveError):
    """No recovery point answers to what was typed, or more than one does."""

    advice = "Run 'backdrive points' to see them."


class BackupOverdue(BackdriveError):
    """A backup was taken for dead before it could commit its point."""

    def __init__(self) -> None:
        super().__init__(
            "This backup was silent for so long that a collect took it for dead: its recovery point cannot be kept.",
            "Run it again: what was stored is used.",
        )


class PathNotFound(BackdriveError):
    """The path is not in the recovery point."""

    def __init__(self, point: str, path: str) -> None:
        super().__init__(
            f"{path} is not in the recovery point {point[:8]}.", "Run 'backdrive ls' to look around in it."
        )
        self.path = path


class SourceUnreadable(BackdriveError):
    """A path to protect does not exist or cannot be entered at all."""


class TargetUnusable(BackdriveError):
    """The restore target cannot be written."""


class MountFailed(BackdriveError):
    """A drive could not be started or stopped."""


class Interrupted(BackdriveError):
    """The person pressed Ctrl-C or the system asked the process to stop; what was stored is kept."""
