"""`backdrive vault create`, `register`, `key` and `passphrase`."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.terminal import on_terminal, words
from tests.conftest import PASSPHRASE, RunCli

OTHER = "entirely different words of it"
NEW = "a new passphrase to remember"


@pytest.fixture
def empty(tmp_path: Path, run_cli: RunCli) -> Path:
    """A vault without a repository."""
    run_cli("vault", "create", tmp_path / "vault", expect=0)
    return tmp_path / "vault"


# --- vault create -----------------------------------------------------------------------------------------------------


def test_a_vault_is_made_once_and_only_in_an_empty_place(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "not empty" in words(run_cli("vault", "create", tmp_path / "full", expect=2).stderr)
    done = run_cli("vault", "create", f"file://{tmp_path}/new%20one", expect=0)
    assert f"file://{tmp_path}/new%20one" in done.stdout
    assert (tmp_path / "new one" / "vault.json").is_file()
    assert "already a vault" in words(run_cli("vault", "create", tmp_path / "new one", expect=2).stderr)
    assert "not supported" in words(run_cli("vault", "create", "azure://account/x", expect=2).stderr)


# --- register ---------------------------------------------------------------------------------------------------------


def test_register_with_the_environment_and_with_a_file(
    run_cli: RunCli, empty: Path, home: Path, tmp_path: Path
) -> None:
    done = run_cli("register", empty, "--machine", "one", expect=0, env={"BACKDRIVE_PASSPHRASE": PASSPHRASE})
    assert "made the repository" in done.stdout and "nobody can bring it back" in words(done.stderr)
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\nnot this line\n")
    other = {"BACKDRIVE_HOME": str(tmp_path / "other")}
    done = run_cli("register", empty, "--machine", "two", "--passphrase-file", secret, expect=0, env=other)
    assert "joined the repository" in done.stdout
    assert run_cli("points", expect=0).stdout == ""
    assert (home / "keys" / "vault.key").stat().st_mode & 0o777 == 0o600


def test_register_without_a_passphrase_or_terminal(run_cli: RunCli, empty: Path, tmp_path: Path) -> None:
    assert "BACKDRIVE_PASSPHRASE" in words(run_cli("register", empty, expect=2).stderr)
    run_cli("register", empty, "--passphrase-file", tmp_path / "none", expect=2)
    (tmp_path / "blank").write_text("\n")
    run_cli("register", empty, "--passphrase-file", tmp_path / "blank", expect=2)
    (tmp_path / "latin").write_bytes(b"\xe4" * 20)
    run_cli("register", empty, "--passphrase-file", tmp_path / "latin", expect=2)
    run_cli("register", empty, expect=2, env={"BACKDRIVE_PASSPHRASE": os.fsdecode(b"\xe4" * 20)})
    assert "16" in run_cli("register", empty, expect=2, env={"BACKDRIVE_PASSPHRASE": "too short"}).stderr
    assert not (empty / "repositories").exists()


def test_a_wrong_passphrase_is_code_5_and_makes_nothing(run_cli: RunCli, vault: Path) -> None:
    before = sorted(vault.rglob("*"))
    told = words(run_cli("register", vault, expect=5, env={"BACKDRIVE_PASSPHRASE": OTHER}).stderr)
    assert "opens none" in told and "--new-repository" in told
    assert sorted(vault.rglob("*")) == before
    run_cli("register", vault, "--new-repository", expect=0, env={"BACKDRIVE_PASSPHRASE": OTHER})
    assert len(list((vault / "repositories").iterdir())) == 2


def test_register_where_there_is_no_vault(run_cli: RunCli, tmp_path: Path, passphrase: str) -> None:
    run_cli("register", tmp_path / "nowhere", expect=6)


def test_two_vaults_need_to_be_told_apart(run_cli: RunCli, vault: Path, tmp_path: Path) -> None:
    run_cli("vault", "create", tmp_path / "second", expect=0)
    run_cli("register", tmp_path / "second", expect=0)
    told = words(run_cli("points", expect=2).stderr)
    assert "second, vault" in told and "--vault" in told
    run_cli("points", "--vault", "second", expect=0)
    run_cli("points", expect=0, env={"BACKDRIVE_VAULT": "vault"})
    run_cli("points", "--vault", "third", expect=7)


def test_a_machine_name_that_cannot_be(run_cli: RunCli, empty: Path, passphrase: str) -> None:
    run_cli("register", empty, "--machine", "a/b", expect=2)
    assert not (empty / "repositories").exists()


@pytest.mark.parametrize("damage", ["missing", "cut short", "of another machine"])
def test_a_key_file_that_cannot_be_used_is_code_5(run_cli: RunCli, vault: Path, home: Path, damage: str) -> None:
    key = home / "keys" / "vault.key"
    if damage == "missing":
        key.unlink()
    elif damage == "cut short":
        key.write_bytes(key.read_bytes()[:50])
    else:
        document = json.loads(key.read_bytes())
        key.write_text(json.dumps({**document, "salt": "00" * 32}))
    assert "backdrive register" in words(run_cli("points", expect=5).stderr)
    run_cli("register", vault, expect=0)
    run_cli("points", expect=0)


# --- register on a terminal -------------------------------------------------------------------------------------------


def test_the_passphrase_is_asked_twice_until_it_agrees(home: Path, empty: Path) -> None:
    code, shown = on_terminal([PASSPHRASE, OTHER, PASSPHRASE, PASSPHRASE], "register", str(empty))
    assert code == 0, shown
    assert "The two differ" in shown and PASSPHRASE not in shown


def test_a_passphrase_is_made_up_and_opens_the_repository(
    home: Path, empty: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    code, shown = on_terminal([""], "register", str(empty))
    assert code == 0, shown
    made = re.search(r"\b([a-z2-9]{4}(?:-[a-z2-9]{4}){5})\b", shown)
    assert made, shown
    other = {"BACKDRIVE_HOME": str(tmp_path / "other"), "BACKDRIVE_PASSPHRASE": made[1]}
    assert "joined" in run_cli("register", empty, "--machine", "two", expect=0, env=other).stdout


def test_a_mistyped_passphrase_is_asked_about(home: Path, vault: Path) -> None:
    code, shown = on_terminal([OTHER, OTHER, "n"], "register", str(vault))
    assert code == 5, shown
    assert "opens none" in words(shown)
    code, shown = on_terminal([OTHER, OTHER, "y"], "register", str(vault))
    assert code == 0, shown


def test_ctrl_c_at_the_question(home: Path, empty: Path) -> None:
    code, shown = on_terminal(["\x03"], "register", str(empty))
    assert code == 130, shown
    assert "Traceback" not in shown


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_second_passphrase_comes_and_goes(run_cli: RunCli, vault: Path, tmp_path: Path) -> None:
    (first,) = run_cli("key", "list", "--json", expect=0).json
    new = {"BACKDRIVE_NEW_PASSPHRASE": NEW}
    run_cli("key", "add", expect=2)
    run_cli("key", "add", expect=2, env={"BACKDRIVE_NEW_PASSPHRASE": "short"})
    run_cli("key", "add", "--about", "in the safe", expect=0, env=new)
    slots = run_cli("key", "list", "--json", expect=0).json
    assert {slot["about"] for slot in slots} == {"made when laptop was registered", "in the safe"}
    other = {"BACKDRIVE_HOME": str(tmp_path / "other")}
    run_cli("register", vault, "--machine", "two", expect=0, env={**other, "BACKDRIVE_PASSPHRASE": NEW})

    assert "--yes" in words(run_cli("key", "remove", first["id"][:8], expect=2).stderr)
    run_cli("key", "remove", "zzz", "--yes", expect=2)
    run_cli("key", "remove", first["id"][:8], "--yes", expect=0)
    run_cli("register", vault, expect=5)  # with the passphrase of the slot that is gone
    (last,) = run_cli("key", "list", "--json", expect=0).json
    assert "last key slot" in words(run_cli("key", "remove", last["id"], "--yes", expect=2).stderr)
    assert last["id"][:8] in run_cli("key", "list", expect=0).stdout


def test_the_passphrase_is_changed(run_cli: RunCli, vault: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text(NEW)
    wrong = {"BACKDRIVE_PASSPHRASE": OTHER}
    run_cli("passphrase", "change", "--new-passphrase-file", new, expect=5, env=wrong)
    run_cli("passphrase", "change", "--new-passphrase-file", new, expect=2, env={"BACKDRIVE_PASSPHRASE": None})
    run_cli("passphrase", "change", expect=2)
    run_cli("passphrase", "change", expect=2, env={"BACKDRIVE_NEW_PASSPHRASE": "short"})
    run_cli("passphrase", "change", "--new-passphrase-file", new, expect=0)
    assert len(run_cli("key", "list", "--json", expect=0).json) == 1
    run_cli("register", vault, expect=5)
    run_cli("register", vault, expect=0, env={"BACKDRIVE_PASSPHRASE": NEW})
    run_cli("points", expect=0)


def test_the_secret_is_in_no_argument_or_output(run_cli: RunCli, vault: Path, tmp_path: Path) -> None:
    done = subprocess.run(["grep", "-r", PASSPHRASE, str(tmp_path)], capture_output=True, check=False)
    assert done.stdout == b""
