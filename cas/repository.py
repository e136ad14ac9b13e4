"""A repository: one encryption and deduplication scope inside a vault; it hands out readers and writers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cas.errors import (
    BackdriveError,
    BackupOverdue,
    Damaged,
    FormatTooNew,
    ObjectDamaged,
    ObjectExists,
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
from cas.store.lifecycle import VOID_FEATURES, Condemned, Void
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
_REFRESHES: Final = 5  # attempts while others merge segments
_VOID_NOTE: Final = " void"  # ends the name under which a void is kept in the cache
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
        self.condemned: dict[str, Condemned] = {}  # by object name, as of the last refresh
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

    def reader(self, cache_bytes: int = 64 << 20, *, follow: bool = True) -> Reader:
        """A reader over what the index knows now; call `refresh` first. With `follow`, it looks again for what a
        collect has moved meanwhile."""
        on_missing = self.follow if follow else None
        return Reader(self.vault, self.layout, self.keys, self.index, cache_bytes, on_missing)

    def writer(self, session: str = "", absent: frozenset[bytes] = frozenset()) -> Writer:
        """A writer; one at a time for each thread that needs one.

        Its segments are named after `session`. What is only in packs that are condemned as of the last refresh, or in
        those of `absent`, is written again.
        """
        absent |= self.condemned_packs()
        return Writer(self.vault, self.layout, self.keys, self.parameters, self.index, session=session, absent=absent)

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
        if kind == ObjectKind.POINT and formats.is_void_size(len(sealed)):
            raise ObjectMissing(self.vault.url, name)  # purged since it was listed
        payload = open_object(self.keys, kind, name, sealed)
        if cached:
            self.index.remember({name: sealed})
        return payload

    # --- index segments ---

    def refresh(self) -> Problems:
        """Bring the machine's index up to date with the vault's segments. A damaged segment is reported, not fatal.

        Condemned packs are listed first: what a collect has moved out of them is in segments that came before.
        """
        problems = Problems()
        for _ in range(_REFRESHES):
            problems.errors.clear()
            self._read_condemned(problems)
            present = {entry.name for entry in self.vault.list(self.layout.index)}
            loaded = {name for name in self.index.segments() if not name.startswith(_LOCAL_SEGMENT)}
            # Where segments were merged or removed, and with them perhaps packs, all are read again. An index that
            # starts or starts again leaves out packs that are gone: a chunk of theirs may be in a later pack as well,
            # and where it is in none, the next backup must know that it has to be read again.
            again = bool(loaded - present)
            packs = self._pack_ids() if present and (again or not loaded) else set() if again else None
            named: set[bytes] = set()
            for name in sorted(present if again else present - loaded):
                try:
                    records = self.segment(name)
                except (Damaged, FormatTooNew, ObjectMissing) as error:
                    problems.errors.append(error)
                    continue
                if packs is not None:
                    records = [record for record in records if record.id in packs]
                    named.update(record.id for record in records)
                if name not in loaded:
                    self.index.load(name, records)
            condemned = set(self.condemned_packs())
            if again:
                self.index.settle(condemned, named, present)
            elif condemned != self.index.condemned():
                self.index.settle(condemned, None, None)
            if not any(isinstance(error, ObjectMissing) for error in problems.errors):
                break  # else a segment was merged into another one after it was listed
        return problems

    def _read_condemned(self, problems: Problems) -> None:
        found: dict[str, Condemned] = {}
        for entry in sorted(self.vault.list(self.layout.condemned)):
            known = self.condemned.get(entry.name)
            try:
                found[entry.name] = known or self._read_one_condemned(entry.name)
            except ObjectMissing:
                continue  # its packs are gone, and no segment named them before it went
            except (Damaged, FormatTooNew) as error:
                problems.errors.append(error)
        self.condemned = found

    def _read_one_condemned(self, name: str) -> Condemned:
        found = formats.decode(self.get_object(ObjectKind.CONDEMNED, name), Condemned, name)
        try:
            found.ids()
        except ValueError as error:
            raise ObjectDamaged(name, f"it names packs that cannot be ({error})") from None
        return found

    def condemned_packs(self) -> frozenset[bytes]:
        """The ids of all packs that are condemned, as of the last refresh."""
        return frozenset(pack for known in self.condemned.values() for _, pack in known.ids())

    def follow(self) -> set[bytes]:
        """Bring the index up to date where something was not where it should be: packs may have been collected. What is
        in no other pack than one that is gone stays known as being there. Returns the ids of the packs that are gone.
        """
        self.refresh()
        lost = {bytes(info.id) for _, info in self.index.packs()} - self._pack_ids()
        if not lost <= self.condemned_packs():
            self.index.settle(lost | self.condemned_packs(), None, None)
        return lost

    def _clear_index(self) -> None:
        left = self.index.notes(_SESSION_NOTE)
        self.index.clear()
        for note in left:  # what a killed run sent is still to be taken in
            self.index.note(note)

    def _pack_ids(self) -> set[bytes]:
        """The ids of all packs in the vault."""
        return {pack for _, pack, _ in list_packs(self)}

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

        Returns how many there were, without those that were condemned: what was needed of them is elsewhere.
        """
        known: set[bytes] = {info.id for _, info in self.index.packs()}
        lost = known - self._pack_ids()
        if lost:
            self.index.settle(set(self.condemned_packs()), known - lost, None)
        return len(lost - self.condemned_packs())

    def adopt_packs(self, problems: Problems, session: str = "") -> int:
        """Name packs that are in the vault but in no segment: what a killed run left, or what lost its segment.

        Packs that were condemned at the last refresh are on their way out and stay unnamed.
        """
        known = {info.id for _, info in self.index.packs()} | self.condemned_packs()
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
            name = self.layout.segment(session)
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
        return self.point_entries()[0]

    def point_entries(self) -> tuple[list[str], list[str]]:
        """The object names of all points, and the names that are closed to points that must not come any more."""
        names: list[str] = []
        voids: list[str] = []
        for entry in sorted(self.vault.list(self.layout.points)):
            (voids if formats.is_void_size(entry.size) else names).append(entry.name)
        return names, voids

    def has_point(self, point: PointId) -> bool:
        """Whether the vault has the point, and not as a deleted one. Raises the vault's errors."""
        try:
            return not formats.is_void_size(self.vault.size(self.layout.points + point))
        except ObjectMissing:
            return False

    def close_point(self, point: PointId, now: int) -> bool:
        """See that `point` can never be committed or taken back: its name is taken, by what is no point.

        False where the point itself has it. `now` is ns. Raises the vault's errors.
        """
        name = self.layout.points + point
        payload = formats.encode(Void(VOID_FEATURES, now))
        sealed = seal_object(self.keys, ObjectKind.POINT, name, payload)
        try:
            self.vault.put(name, [*sealed, formats.VOID_ENDING])
        except ObjectExists:
            return not self.has_point(point)
        return True

    def read_void(self, name: str) -> int:
        """When a name was closed, in ns. Raises ObjectDamaged, ObjectMissing."""
        sealed = self.index.recall(name + _VOID_NOTE)
        if sealed is None:
            sealed = self.vault.get(name)
            self.index.remember({name + _VOID_NOTE: sealed})  # under the name alone there may be the point of before
        end = len(sealed) - len(formats.VOID_ENDING)
        return formats.decode(open_object(self.keys, ObjectKind.POINT, name, sealed[:end]), Void, name).voided

    def read_point(self, name: str, *, cached: bool = True) -> Point:
        """One point by its object name; unless `cached`, from the vault itself. Raises ObjectDamaged, ObjectMissing,
        FormatTooNew."""
        payload = self.get_object(ObjectKind.POINT, name, cached=cached)
        return self.parse_point(payload, name)

    def parse_point(self, payload: bytes, name: str) -> Point:
        """The point of a payload that was found under `name`. Raises ObjectDamaged, FormatTooNew."""
        # The features are read on their own first: a point from the future may not parse as one of ours.
        formats.check_features(formats.decode(payload, dict[str, object], name).get("features", []), name)
        point = formats.decode(payload, Point, name)
        if name.rpartition("/")[2] != point.id:
            raise ObjectDamaged(name, "it is a point of another name")
        return point

    def commit(self, point: Point) -> None:
        """Store a point: the last step of a backup, when everything it refers to is durable.

        Raises BackupOverdue where a collect has taken the run for dead, and the vault's errors.
        """
        name = self.layout.points + point.id
        sealed = b"".join(seal_object(self.keys, ObjectKind.POINT, name, formats.encode(point)))
        try:
            self.vault.put(name, [sealed])
        except ObjectExists:
            raise BackupOverdue from None
        self.index.remember({name: sealed})
        self.index.forget_note(_SESSION_NOTE + point.id)

    # --- sessions ---

    def note_session(self, point: PointId) -> None:
        """Remember on this machine that a backup is about to write `point`, until it is committed."""
        self.index.note(_SESSION_NOTE + point)

    def adopt_left(self, point: PointId) -> Problems:
        """Take in what killed runs of this machine left behind, as the backup that will write `point`.

        Returns what could not be read on the way.
        """
        problems = Problems()
        left = [note for note in self.index.notes(_SESSION_NOTE) if note != _SESSION_NOTE + point]
        if left:
            self.adopt_packs(problems, point)
            for note in left:
                self.index.forget_note(note)
        return problems


def list_packs(repository: Repository) -> Iterator[tuple[PackKind, PackId, int]]:
    """Every pack in the vault: kind, id, bytes. What is none is left out. Raises the vault's errors."""
    for kind in PackKind:
        for entry in repository.vault.list(repository.layout.packs(kind)):
            try:
                pack = pack_of_name(entry.name)
            except ObjectDamaged:
                continue  # something foreign, which the index never names
            if entry.name == repository.layout.pack(kind, pack):
                yield kind, pack, entry.size


def pack_of_name(name: str) -> PackId:
    """The pack id in an object name. Raises ObjectDamaged where it is none."""
    try:
        pack = bytes.fromhex(name.rsplit("/", 1)[-1])
    except ValueError:
        pack = b""
    if len(pack) != 32:
        raise ObjectDamaged(name, "its name is not that of a pack")
    return PackId(pack)
