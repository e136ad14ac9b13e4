"""One command's use of a registered repository, open from its beginning to its end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urlsplit

from cas.agent.files import make_directory, translated
from cas.agent.home import Home
from cas.agent.registration import Registration, secret_of, select
from cas.errors import BackdriveError, ObjectDamaged, ObjectMissing
from cas.model import Point
from cas.repository import Problems, Repository, check_vault
from cas.store.reader import Reader
from cas.tasks.choose import find_point, protects
from cas.vault.locate import open_vault


@dataclass(slots=True)
class Session:
    """An open repository, and what this machine knows of it."""

    home: Home
    registration: Registration
    repository: Repository
    problems: Problems = field(default_factory=Problems)
    damage: ObjectDamaged | ObjectMissing | None = None  # of the vault's header: it can be read, not written

    def reader(self) -> Reader:
        """A reader over all that the vault holds now. What of it cannot be read is added to `problems`."""
        self.problems.errors.extend(self.repository.refresh().errors)
        if self.damage is not None:
            self.problems.errors.append(self.damage)
        return self.repository.reader()

    def point(self, text: str) -> Point:
        """The point that a person means; `latest` is this machine's. Raises PointNotFound."""
        return find_point(self.repository, text, self.registration.machine)


@contextmanager
def open_session(home: Home, name: str | None) -> Iterator[Session]:
    """Open the registered repository, by the name of its registration or as the only one.

    Raises NotRegistered, MachineKeyUnusable, CacheUnusable, NoSpace and the vault's errors.
    """
    registration = select(home, name)
    secret = secret_of(home, registration)
    vault = open_vault(registration.vault)
    damage: ObjectDamaged | ObjectMissing | None = None
    try:
        try:
            check_vault(vault)
        except (ObjectDamaged, ObjectMissing) as error:
            damage = error
        make_directory(home.cache)
        with Repository(vault, registration.repository, secret, home.cache) as repository:
            yield Session(home, registration, repository, damage=damage)
    finally:
        vault.close()


def list_points(session: Session, machine: str | None, path: bytes | None) -> tuple[list[Point], list[BackdriveError]]:
    """The points that can be read, oldest first, and what cannot: of one machine or all, protecting `path` or any."""
    problems = Problems()
    found = [
        point
        for point in session.repository.points(problems)
        if (machine is None or point.machine == machine) and (path is None or protects(point, path))
    ]
    return found, problems.errors


def clear_cache(home: Home, name: str | None) -> Registration:
    """Remove what this machine has cached of the repository. Opens nothing: the cache may be what is broken.

    Raises NotRegistered, CacheUnusable.
    """
    registration = select(home, name)
    path = home.cache / registration.repository
    with translated(path):
        if path.exists():
            shutil.rmtree(path)
    return registration


def vault_directory(registration: Registration) -> bytes | None:
    """The directory of a vault on this machine, or None."""
    parts = urlsplit(registration.vault)
    return unquote_to_bytes(parts.path) if parts.scheme == "file" else None


@dataclass(frozen=True, slots=True)
class Access:
    """What another process needs to open the registered repository by itself: a drive does."""

    registration: Registration
    secret: bytes
    point: str | None  # the whole id


def open_access(home: Home, name: str | None, point: str | None) -> Access:
    """Look up the registration, its secret, and the point that is meant, where one is.

    Raises as `open_session` does, PointNotFound.
    """
    # The repository is opened here too, so that what is wrong with it is said here, with its own exit code.
    with open_session(home, name) as session:
        found = None if point is None else session.point(point).id
        return Access(session.registration, session.repository.keys.secret, found)
