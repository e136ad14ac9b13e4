"""A repository: one encryption and deduplication scope inside a vault; it hands out readers and writers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cas.errors import (
    BackdriveError,
    Damaged,
    FormatTooNew,
    ObjectDamaged,
    ObjectMissing,
    VaultReadOnly,
    WrongPassphrase,
)
from cas.ids import PackId, PointId, RepositoryId
from cas.model import Point
from cas.store import formats, keys
from cas.store.formats import PACK_FOOTER, PACK_HEADER_BYTES, ObjectKind, PackKind, PackRecord
from cas.store.index import Index
from cas.store.keys import RepositoryKeys
from cas.store.layout import VAULT_HEADER, Layout, new_id
from cas.store.pack import open_record, read_header, toc_length
from cas.store.parameters import Parameters
from cas.store.reader import Reader
from cas.store.sealer import open_object, seal_object, toc_opener
from cas.store.slots import KeySlots
from cas.store.writer import Writer
from cas.vault.base import Vault

_REPOSITORY_FORMAT: Final = "backdrive repository"
VAULT_FORMAT: Final = "backdrive vault"
_SESSION_NOTE: Final = "session "
_LOCAL_SEGMENT: Final = "local "  # starts the name of what this machine alone knows, of a vault it cannot write


def vault_header() -> bytes:
    """The plain header of a new vault."""
    return formats.encode_header(VAULT_FORMAT, new_id())


def check_vault(vault: Vault) -> str:
    """The vault's id. Raises FormatTooNew, ObjectDamaged, VaultMissing."""
    header = formats.decode_header(vault.get(VAULT_HEADER), VAULT_FORMAT, VAULT_HEADER)

    return str(header.get("id"))


@dataclass(slots=True)
class Problems:
    """What could not be used while the rest went on: the errors, each naming its object."""

    errors: list[BackdriveError] = field(default_factory=list)


class Repository:
    """An open repository. Close it, or use it as a context manager."""

    def __init__(self, vault: Vault, repository: RepositoryId, secret: bytes, cache: Path) -> None:
        """Open it with its secret; `cache` is this machine's cache directory, in which it takes a folder of its own.

        With a damaged header a repository can still be read: `damage` tells, and `writer` raises it.
        Raises WrongPassphrase where the secret is not this repository's, FormatTooNew, ObjectMissing where there is no
        such repository, CacheUnusable, NoSpace and the vault's errors.
        """
        self.id: Final = repository
        self.vault: Final = vault
        self.layout: Final = Layout(repository)
        self.keys: Final = RepositoryKeys(secret)
        self.slots: Final = KeySlots(vault, self.layout, self.keys)
        self.damage: Final = self._open_header()
        self._cache = cache / repository
        self.index: Final = Index(self._cache / "index")

    def _open_header(self) -> ObjectDamaged | ObjectMissing | None:
        """Look at the header; returns what is wrong with it where the rest can be used all the same."""
        self._parameters: Parameters | None = None
        try:
            self._parameters = self.read_header()
        except ObjectDamaged as error:
            return error
        except ObjectMissing as error:
            if next(iter(self.vault.list(self.layout.keys)), None) is None:
                raise  # no header, no key slot: no repository
            return error
        return None

    @property
    def parameters(self) -> Parameters:
        """What a writer must know. Raises ObjectDamaged, ObjectMissing where the header is damaged."""
        if self._parameters is None:
            assert self.damage is not None
            raise self.damage
        return self._parameters

    def read_header(self) -> Parameters:
        """The parameters in the vault. Raises ObjectDamaged, ObjectMissing, FormatTooNew, WrongPassphrase."""
        name = self.layout.header
        header = formats.decode_header(self.vault.get(name), _REPOSITORY_FORMAT, name)
        if header.get("id") != self.id:
            raise ObjectDamaged(name, "it is the header of another repository")
        try:
            sealed = bytes.fromhex(header["sealed"])
        except (KeyError, TypeError, ValueError):
            raise ObjectDamaged(name, "its parameters do not parse") from None
        try:
            payload = open_object(self.keys, ObjectKind.PARAMETERS, name, sealed)
        except ObjectDamaged:
            raise WrongPassphrase(
                f"The key of this machine does not open the repository {self.id[:8]}, or its header {name} is damaged."
            ) from None
        return formats.decode(payload, Parameters, name)

    @staticmethod
    def create(vault: Vault, passphrase: str, about: str, parameters: Parameters) -> tuple[RepositoryId, bytes]:
        """Make a repository in the vault with its first key slot. Returns its id and secret.

        Raises InvalidRequest where the passphrase is too short, and the vault's errors.
        """
        keys.check_passphrase(passphrase)
        repository = RepositoryId(new_id())
        secret = keys.new_secret()
        derived = RepositoryKeys(secret)
        layout = Layout(repository)
        # The slot comes first: a header without a slot would be a repository that nobody can open.
        KeySlots(vault, layout, derived).add(passphrase, about)
        sealed = b"".join(seal_object(derived, ObjectKind.PARAMETERS, layout.header, formats.encode(parameters)))
        header = formats.encode_header(_REPOSITORY_FORMAT, repository, features=[], sealed=sealed.hex())
        vault.put(layout.header, [header])
        return repository, secret

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; the vault belongs to the caller."""
        self.index.close()

    # --- readers and writers ---

    def reader(self, cache_bytes: int = 64 << 20) -> Reader:
        """A reader over what the index knows now; call `refresh` first."""
        return Reader(self.vault, self.layout, self.keys, self.index, cache_bytes)

    def writer(self) -> Writer:
        """A writer; one at a time for each thread that needs one."""
        return Writer(self.vault, self.layout, self.keys, self.parameters, self.index)

    # --- sealed objects ---

    def put_object(self, kind: ObjectKind, name: str, payload: bytes) -> None:
        """Seal and store one object. Raises the vault's errors."""
        self.vault.put(name, seal_object(self.keys, kind, name, payload))

    def get_object(self, kind: ObjectKind, name: str, *, cached: bool = False) -> bytes:
        """Fetch and open one object; with `cached`, from the machine's cache where it is there.

        Raises ObjectMissing, ObjectDamaged, FormatTooNew and the vault's errors.
        """
        if cached:
            sealed = self.index.recall(name)
            if sealed is not None:
                try:
                    return open_object(self.keys, kind, name, sealed)
                except ObjectDamaged:
                    pass  # the cache is damaged, not the vault: fetch it again
        sealed = self.vault.get(name)
        payload = open_object(self.keys, kind, name, sealed)
        if cached:
            self.index.remember({name: sealed})
        return payload

    # --- index segments ---

    def refresh(self) -> Problems:
        """Bring the machine's index up to date with the vault's segments. A damaged segment is reported, not fatal."""
        problems = Problems()
        present = {entry.name for entry in self.vault.list(self.layout.index)}
        loaded = {name for name in self.index.segments() if not name.startswith(_LOCAL_SEGMENT)}
        if loaded - present:
            # Segments were merged or removed, and with them perhaps packs: start again from what the vault has now.
            self._clear_index()
            loaded = set()
        # An index made anew leaves out packs that are gone: a chunk of theirs may be in a later pack as well, and where
        # it is in none, the next backup must know that it has to be read again.
        packs = self._pack_ids() if present and not loaded else None
        for name in sorted(present - loaded):
            try:
                records = self.segment(name)
                if packs is not None:
                    records = [record for record in records if record.id in packs]
                self.index.load(name, records)
            except (Damaged, FormatTooNew, ObjectMissing) as error:
                problems.errors.append(error)
        return problems

    def _clear_index(self) -> None:
        left = self.index.notes(_SESSION_NOTE)
        self.index.clear()
        for note in left:  # what a killed run sent is still to be taken in
            self.index.note(note)

    def _pack_ids(self) -> set[bytes]:
        """The ids of all packs in the vault."""
        found: set[bytes] = set()
        for kind in PackKind:
            for entry in self.vault.list(self.layout.packs(kind)):
                try:
                    found.add(pack_of_name(entry.name))
                except ObjectDamaged:
                    pass  # something foreign, which the index never names
        return found

    def segment(self, name: str) -> list[PackRecord]:
        """The packs that an index segment names. Raises ObjectDamaged, ObjectMissing, FormatTooNew, PackDamaged."""
        records = formats.decode(self.get_object(ObjectKind.INDEX, name), list[PackRecord], name)
        for record in records:
            if len(record.id) != 32 or len(record.salt) != formats.SALT_BYTES or record.kind not in (1, 2):
                raise ObjectDamaged(name, "it names a pack that cannot be")
            formats.check_blocks(PackId(record.id), record.size, record.blocks)
        return records

    def rebuild(self) -> tuple[int, Problems]:
        """Make the index anew: from the segments, then from the tables of contents of packs that no segment names.

        The packs found that way are named in a new segment, where the vault can be written. Returns how many there
        were. Packs that are gone are left out.
        """
        self._clear_index()
        problems = self.refresh()
        found = self.adopt_packs(problems)
        return found, problems

    def forget_lost_packs(self) -> int:
        """Take packs that are gone from the vault out of the index, so that a backup reads again what was in them.

        Returns how many there were.
        """
        present = self._pack_ids()
        lost = sum(info.id not in present for _, info in self.index.packs())
        if lost:
            self._clear_index()
            self.refresh()
        return lost

    def adopt_packs(self, problems: Problems) -> int:
        """Name packs that are in the vault but in no segment: what a killed run left, or what lost its segment."""
        known = {info.id for _, info in self.index.packs()}
        records: list[PackRecord] = []
        for kind in PackKind:
            for entry in self.vault.list(self.layout.packs(kind)):
                try:
                    pack = pack_of_name(entry.name)
                    if pack not in known:
                        records.append(self.read_record(pack, entry.name, entry.size))
                except (Damaged, FormatTooNew, ObjectMissing) as error:
                    problems.errors.append(error)
        if records:
            name = self.layout.index + new_id()
            try:
                self.put_object(ObjectKind.INDEX, name, formats.encode(records))
            except VaultReadOnly:
                name = _LOCAL_SEGMENT + new_id()
            self.index.load(name, records)
        return len(records)

    def read_record(self, pack: PackId, name: str, size: int) -> PackRecord:
        """A pack's record from the pack itself. Raises PackDamaged, FormatTooNew, ObjectMissing."""
        salt = read_header(pack, self.vault.get(name, 0, PACK_HEADER_BYTES))
        length = toc_length(pack, size, self.vault.get(name, max(size - PACK_FOOTER.size, 0)))
        sealed = self.vault.get(name, size - PACK_FOOTER.size - length, length)
        return open_record(toc_opener(self.keys), pack, size, salt, sealed)

    # --- recovery points ---

    def points(self, problems: Problems | None = None) -> list[Point]:
        """Every point that can be read, oldest first. What cannot be read goes to `problems`, or is raised."""
        found = []
        for name in self.point_names():
            try:
                found.append(self.read_point(name))
            except (Damaged, FormatTooNew, ObjectMissing) as error:
                if problems is None:
                    raise
                problems.errors.append(error)
        found.sort(key=lambda point: (point.started, point.id))
        return found

    def point_names(self) -> list[str]:
        """The object names of all points."""
        return sorted(entry.name for entry in self.vault.list(self.layout.points))

    def read_point(self, name: str, *, cached: bool = True) -> Point:
        """One point by its object name; unless `cached`, from the vault itself. Raises ObjectDamaged, ObjectMissing,
        FormatTooNew."""
        payload = self.get_object(ObjectKind.POINT, name, cached=cached)
        # The features are read on their own first: a point from the future may not parse as one of ours.
        formats.check_features(formats.decode(payload, dict[str, object], name).get("features", []), name)
        point = formats.decode(payload, Point, name)
        if name != self.layout.points + point.id:
            raise ObjectDamaged(name, "it is a point of another name")
        return point

    def commit(self, point: Point) -> None:
        """Store a point: the last step of a backup, when everything it refers to is durable."""
        name = self.layout.points + point.id
        sealed = b"".join(seal_object(self.keys, ObjectKind.POINT, name, formats.encode(point)))
        self.vault.put(name, [sealed])
        self.index.remember({name: sealed})
        self.index.forget_note(_SESSION_NOTE + point.id)

    # --- sessions ---

    def begin_session(self, point: PointId, payload: dict[str, object]) -> Iterator[BackdriveError]:
        """Announce a backup that will write `point`, and take in what a killed run of this machine left behind.

        Yields what could not be read on the way.
        """
        left = self.index.notes(_SESSION_NOTE)
        self.put_object(ObjectKind.SESSION, self.layout.sessions + point, formats.encode(payload))
        self.index.note(_SESSION_NOTE + point)
        if left:
            problems = Problems()
            self.adopt_packs(problems)
            for note in left:
                self.index.forget_note(note)
            yield from problems.errors


def pack_of_name(name: str) -> PackId:
    """The pack id in an object name. Raises ObjectDamaged where it is none."""
    try:
        pack = bytes.fromhex(name.rsplit("/", 1)[-1])
    except ValueError:
        pack = b""
    if len(pack) != 32:
        raise ObjectDamaged(name, "its name is not that of a pack")
    return PackId(pack)
