"""What tests of the command need to talk with it: its messages as one line, and a terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

from tests.conftest import ROOT


def words(text: str) -> str:
    """Text as one line, for messages are wrapped."""
    return " ".join(text.split())


def on_terminal(answers: list[str], *arguments: str) -> tuple[int, str]:
    """Run the command on a terminal, giving each answer when something is asked; its code and all it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ.pop("BACKDRIVE_PASSPHRASE", None)
        os.execv(sys.executable, [sys.executable, "-m", "cli.main", *arguments])
    shown = b""
    todo = list(answers)
    deadline = time.monotonic() + 60
    seen = 0
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        if ready:
            try:
                part = os.read(terminal, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        elif todo and shown[seen:].rstrip(b" ").endswith(b":"):
            seen = len(shown)
            os.write(terminal, todo.pop(0).encode() + b"\n")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()
