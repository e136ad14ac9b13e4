"""The code still gives the vectors that were frozen with format version 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compat.vectors import vectors

FROZEN = Path(__file__).parents[2] / "fixtures" / "vectors" / "v1.json"


@pytest.mark.parametrize("part", ["keys", "chunks", "contents", "trees"])
def test_the_code_gives_the_frozen_vectors(part: str) -> None:
    frozen = json.loads(FROZEN.read_text())
    assert json.loads(json.dumps(vectors()[part])) == frozen[part]
