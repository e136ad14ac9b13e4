"""Registration: joining and making repositories, machine names, the sealed key file, the home."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cas.agent import host, machines
from cas.agent.home import Home, find_home
from cas.agent.machine_key import key_path, read_key, write_key
from cas.agent.passphrases import generate
from cas.agent.registration import (
    Registered,
    RegisterRequest,
    ensure_recorded,
    names,
    register_machine,
    secret_of,
    select,
)
from cas.agent.session import clear_cache, open_session, vault_directory
from cas.agent.vaults import create_vault
from cas.errors import (
    CacheUnusable,
    InvalidRequest,
    MachineKeyUnusable,
    NotRegistered,
    VaultMissing,
    VaultReadOnly,
    WrongPassphrase,
)
from cas.ids import RepositoryId
from cas.store.keys import PASSPHRASE_MIN_CHARACTERS
from cas.store.slots import list_repositories
from cas.vault.local import LocalVault
from cas.vault.locate import open_vault

PASSPHRASE = "one long passphrase for tests"
OTHER = "quite another long passphrase"
REPOSITORY = RepositoryId("0" * 32)


def never(message: str) -> bool:
    pytest.fail(f"nobody should be asked: {message}")


@pytest.fixture
def host_named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Be another computer."""

    def be(name: str | None) -> None:
        monkeypatch.setattr(host, "system_id", lambda: name)

    be("host one")
    return be


@pytest.fixture
def vault(tmp_path: Path) -> str:
    return create_vault(str(tmp_path / "vault"))


@pytest.fixture
def join(tmp_path: Path, vault: str, host_named: object) -> Callable[..., Registered]:
    def register(
        *,
        home: str = "home",
        machine: str | None = "laptop",
        passphrase: str = PASSPHRASE,
        confirm: Callable[[str], bool] = never,
        place: str = vault,
        generated: bool = False,
        new_repository: bool = False,
        take_over: bool = False,
        name: str | None = None,
    ) -> Registered:
        request = RegisterRequest(
            vault=place,
            machine=machine,
            passphrase=passphrase,
            generated=generated,
            new_repository=new_repository,
            take_over=take_over,
            name=name,
            now=7,
        )
        return register_machine(Home(tmp_path / home), request, confirm)

    return register


# --- the home ---------------------------------------------------------------------------------------------------------


def test_the_home_is_where_the_environment_says(tmp_path: Path) -> None:
    assert find_home({"BACKDRIVE_HOME": str(tmp_path)}).root == tmp_path
    assert find_home({"BACKDRIVE_HOME": "here"}).root.is_absolute()


def test_without_it_the_platform_says_where() -> None:
    assert find_home({}).root == find_home({"BACKDRIVE_HOME": ""}).root
    assert find_home({}).root.name == "backdrive"


def test_everything_in_the_home_is_for_its_owner_alone(join: Callable[..., Registered], tmp_path: Path) -> None:
    join()
    for path in [tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.is_relative_to(tmp_path / "home" / "cache"), path
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "home/keys/vault.key").stat().st_mode) == 0o600
    assert not list((tmp_path / "home").rglob(".*")), "a temporary file was left"


def test_a_home_that_cannot_be_written_leaves_the_vault_as_it_is(
    join: Callable[..., Registered], tmp_path: Path, vault: str
) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(CacheUnusable):
        join()
    assert list_repositories(open_vault(vault)) == []


# --- the key file -----------------------------------------------------------------------------------------------------


def test_the_key_opens_on_this_machine(tmp_path: Path, host_named: object) -> None:
    write_key(Home(tmp_path), "v", REPOSITORY, b"s" * 32)
    assert read_key(Home(tmp_path), "v", REPOSITORY) == b"s" * 32
    assert b"s" * 32 not in key_path(Home(tmp_path), "v").read_bytes()
    assert (b"s" * 32).hex().encode() not in key_path(Home(tmp_path), "v").read_bytes()


def test_a_copy_does_not_open_on_another_machine(tmp_path: Path, host_named: Callable[[str | None], None]) -> None:
    write_key(Home(tmp_path), "v", REPOSITORY, b"s" * 32)
    host_named("host two")
    with pytest.raises(MachineKeyUnusable, match="another machine"):
        read_key(Home(tmp_path), "v", REPOSITORY)
    host_named(None)
    with pytest.raises(MachineKeyUnusable, match="has none"):
        read_key(Home(tmp_path), "v", REPOSITORY)


def test_a_machine_without_an_id_keeps_one_in_its_home(
    tmp_path: Path, host_named: Callable[[str | None], None]
) -> None:
    host_named(None)
    write_key(Home(tmp_path), "v", REPOSITORY, b"s" * 32)
    host_named("an id that came later")
    assert read_key(Home(tmp_path), "v", REPOSITORY) == b"s" * 32
    (tmp_path / "host-id").unlink()
    with pytest.raises(MachineKeyUnusable):
        read_key(Home(tmp_path), "v", REPOSITORY)


def test_a_key_of_another_repository_is_not_taken(tmp_path: Path, host_named: object) -> None:
    write_key(Home(tmp_path), "v", REPOSITORY, b"s" * 32)
    with pytest.raises(MachineKeyUnusable):
        read_key(Home(tmp_path), "v", RepositoryId("1" * 32))


@pytest.mark.parametrize("at", range(0, 260, 7))
def test_a_damaged_key_file_is_named(tmp_path: Path, host_named: object, at: int) -> None:
    write_key(Home(tmp_path), "v", REPOSITORY, b"s" * 32)
    path = key_path(Home(tmp_path), "v")
    data = bytearray(path.read_bytes())
    for changed in (data[:at], bytes(data[:at]) + bytes([data[at % len(data)] ^ 0x11]) + bytes(data[at + 1 :])):
        path.write_bytes(changed)
        try:
            assert read_key(Home(tmp_path), "v", REPOSITORY) == b"s" * 32  # a change between the fields
        except MachineKeyUnusable as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("document", ["[]", "7", "{}", '{"format": "backdrive machine key", "version": 2}'])
def test_another_document_is_no_key(tmp_path: Path, document: str) -> None:
    key_path(Home(tmp_path), "v").parent.mkdir()
    key_path(Home(tmp_path), "v").write_text(document)
    with pytest.raises(MachineKeyUnusable):
        read_key(Home(tmp_path), "v", REPOSITORY)


# --- joining and making -----------------------------------------------------------------------------------------------


def test_the_first_registration_makes_a_repository_and_the_second_joins_it(join: Callable[..., Registered]) -> None:
    first = join()
    second = join(home="other", machine="server")
    assert (first.created, second.created) == (True, False)
    assert first.registration.repository == second.registration.repository
    assert first.registration.machine_id != second.registration.machine_id


def test_a_mistyped_passphrase_makes_nothing_unless_a_person_says_so(
    join: Callable[..., Registered], vault: str
) -> None:
    join()
    asked: list[str] = []

    def no(message: str) -> bool:
        asked.append(message)
        return False

    with pytest.raises(WrongPassphrase, match="--new-repository"):
        join(passphrase=OTHER, confirm=no)
    assert "opens none" in asked[0]
    assert len(list_repositories(open_vault(vault))) == 1
    assert join(passphrase=OTHER, confirm=lambda message: True).created
    assert len(list_repositories(open_vault(vault))) == 2


def test_a_generated_passphrase_makes_a_repository_without_asking(join: Callable[..., Registered]) -> None:
    join()
    made = join(passphrase=generate(), generated=True)
    assert made.created
    assert made.registration.name == "vault-2"


def test_a_new_repository_can_be_had_with_the_same_passphrase(join: Callable[..., Registered], vault: str) -> None:
    assert join().registration.repository != join(new_repository=True).registration.repository


def test_a_short_passphrase_makes_no_repository(join: Callable[..., Registered], vault: str) -> None:
    with pytest.raises(InvalidRequest, match="16"):
        join(passphrase="short")
    assert list_repositories(open_vault(vault)) == []


def test_no_vault_no_registration(join: Callable[..., Registered], tmp_path: Path) -> None:
    with pytest.raises(VaultMissing):
        join(place=str(tmp_path / "elsewhere"))
    assert names(Home(tmp_path / "home")) == []


def test_registering_again_repairs(join: Callable[..., Registered], tmp_path: Path) -> None:
    first = join().registration
    home = Home(tmp_path / "home")
    key_path(home, "vault").unlink()
    with pytest.raises(MachineKeyUnusable, match="register"):
        secret_of(home, first)
    assert join(machine=None).registration == first
    assert len(secret_of(home, first)) == 32
    (home.registrations / "vault.json").write_text("{")
    with pytest.raises(MachineKeyUnusable):
        select(home, None)
    assert join().registration == first
    assert names(home) == ["vault"]


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_machine_name_is_one_computer_s(
    join: Callable[..., Registered], host_named: Callable[[str | None], None]
) -> None:
    first = join().registration
    assert join(home="root's").registration.machine_id == first.machine_id, "the same host continues"
    host_named("host two")
    for name in ("laptop", "LAPTOP"):
        with pytest.raises(InvalidRequest, match="--take-over"):
            join(home="two", machine=name)
    taken = join(home="two", take_over=True).registration
    assert (taken.machine_id, taken.machine) == (first.machine_id, "laptop")
    assert join(home="two").registration == taken, "it is this host's from now on"
    host_named("host one")
    with pytest.raises(InvalidRequest):
        join()
    assert join(take_over=True).registration.machine_id == first.machine_id


def test_the_vault_tells_no_machine_names(join: Callable[..., Registered], tmp_path: Path) -> None:
    join(machine="a-secret-name")
    for path in (tmp_path / "vault").rglob("*"):
        assert "secret-name" not in path.name
        assert not path.is_file() or b"secret-name" not in path.read_bytes()


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "x.", "a/b", "a b", "ä", "x" * 64, "a\nb", "a\n", "-" * 64])
def test_machine_names_that_cannot_be(join: Callable[..., Registered], name: str) -> None:
    with pytest.raises(InvalidRequest):
        join(machine=name)


@pytest.mark.parametrize("name", ["a", "x" * 63, "web-1.example", "A_b"])
def test_machine_names_that_can_be(name: str) -> None:
    machines.check_machine_name(name)


@pytest.mark.parametrize("text", ["", "...", "a b/c", "ä", "x" * 99, "-.-", "Müller's PC", "x" * 62 + ".."])
def test_a_usable_name_can_be_used(text: str) -> None:
    machines.check_machine_name(machines.usable_name(text, "machine"))


def test_two_vaults_of_one_name(join: Callable[..., Registered], tmp_path: Path) -> None:
    join()
    second = create_vault(str(tmp_path / "deep" / "vault"))
    assert join(place=second).registration.name == "vault-2"
    home = Home(tmp_path / "home")
    with pytest.raises(InvalidRequest, match=r"vault, vault-2.*--vault"):
        select(home, None)
    assert select(home, "vault-2").vault == second
    with pytest.raises(NotRegistered, match="vault-3"):
        select(home, "vault-3")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_registration_names_that_cannot_be(join: Callable[..., Registered], name: str) -> None:
    with pytest.raises(InvalidRequest):
        join(name=name)


def test_nothing_is_registered_in_a_new_home(tmp_path: Path) -> None:
    with pytest.raises(NotRegistered, match="register"):
        select(Home(tmp_path), None)


@pytest.mark.parametrize("field", ["name", "version", "repository"])
def test_a_registration_that_is_damaged_or_newer_is_refused(
    join: Callable[..., Registered], tmp_path: Path, field: str
) -> None:
    join()
    path = tmp_path / "home/registrations/vault.json"
    document = json.loads(path.read_bytes())
    document[field] = 9 if field == "version" else "x"
    path.write_text(json.dumps(document))
    with pytest.raises(MachineKeyUnusable), open_session(Home(tmp_path / "home"), None):
        pass


# --- a vault that cannot be written -----------------------------------------------------------------------------------


def test_a_read_only_vault_can_be_joined_and_the_name_is_claimed_later(
    join: Callable[..., Registered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vault: str
) -> None:
    join(home="first", machine="first")

    def refuse(self: LocalVault, name: str, parts: object) -> None:
        raise VaultReadOnly(self.url, "it is a test")

    with monkeypatch.context() as patched:
        patched.setattr(LocalVault, "put", refuse)
        known = join().registration
    assert not known.recorded
    home = Home(tmp_path / "home")
    with open_session(home, None) as session:
        claimed = ensure_recorded(home, session.registration, session.repository, 8)
        assert claimed.recorded
        assert select(home, None) == claimed
        assert machines.holders(session.repository, "laptop")


# --- the session ------------------------------------------------------------------------------------------------------


def test_a_session_opens_what_is_registered(join: Callable[..., Registered], tmp_path: Path) -> None:
    known = join().registration
    home = Home(tmp_path / "home")
    with open_session(home, None) as session:
        assert session.repository.id == known.repository
        assert session.repository.points() == []
    assert (home.cache / known.repository).is_dir()
    clear_cache(home, None)
    assert not (home.cache / known.repository).exists()
    clear_cache(home, None)  # nothing there is no error


def test_the_vault_s_directory_is_known(join: Callable[..., Registered], tmp_path: Path) -> None:
    place = create_vault(str(tmp_path / "ein Täst"))
    assert vault_directory(join(place=place).registration) == bytes(tmp_path / "ein Täst")


def test_generated_passphrases_are_long_and_differ() -> None:
    made = {generate() for _ in range(100)}
    assert len(made) == 100
    assert all(len(one) >= PASSPHRASE_MIN_CHARACTERS for one in made)
