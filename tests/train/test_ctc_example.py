"""The example learns to read patterns whose places it is never told."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "ctc.py"


def test_the_example_learns(capsys):
    assert runpy.run_path(str(EXAMPLE))["main"]() < 0.05
    assert "label error rate" in capsys.readouterr().out
