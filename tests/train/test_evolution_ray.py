"""Evaluations spread over a local Ray of two workers."""

from dataclasses import replace

import pytest
import torch

from cellwright.tasks.double_pole import Balancing
from cellwright.train.evolution import evolve
from cellwright.train.search import EvolutionSettings

ray = pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")

# Ray's own, of its processes and files.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_two_workers_give_the_bits_of_one_process(tmp_path):
    settings = EvolutionSettings(evaluations=60)
    here = evolve(Balancing("constant_gates", 3, 4.5), settings, tmp_path / "here")
    spread = evolve(
        Balancing("constant_gates", 3, 4.5), replace(settings, ray_workers=2), tmp_path / "spread"
    )
    assert torch.equal(spread.best, here.best)
    assert replace(spread, best=None) == replace(here, best=None)
    assert not ray.is_initialized()  # what it has started it has ended
