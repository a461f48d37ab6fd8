"""The search: how it ends, starts again, is recorded and resumed."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call, vmap

from cellwright.errors import CheckpointError, InputError, UsageError
from cellwright.train import storage
from cellwright.train.evolution import FILE, KIND, evolve
from cellwright.train.flat import FlatParameters
from cellwright.train.search import EvolutionSettings, Search

EVERY = EvolutionSettings(save_every=0.0, evaluations=300, patience=60, growth=1.5, sigma=0.3)


class KilledError(Exception):
    """Stands for the end of the process."""


class Ellipsoid:
    """-sum of (scale (x - 1))^2, rotated or not; dies after a number of generations."""

    def __init__(self, parameters=5, condition=100.0, rotated=False, dies_after=math.inf):
        self.parameters = parameters
        scales = condition ** (torch.arange(parameters) / (2 * (parameters - 1)))
        self.matrix = torch.diag(scales.double())
        if rotated:
            draws = torch.randn(
                parameters, parameters, generator=torch.Generator().manual_seed(1)
            ).double()
            self.matrix = self.matrix @ torch.linalg.qr(draws).Q
        self.generations, self.dies_after = 0, dies_after

    def fitness(self, population):
        if self.generations >= self.dies_after:
            raise KilledError
        self.generations += 1
        return -((population - 1) @ self.matrix.T).square().sum(1)

    def solved(self, best, fitness):
        return {"distance": (best - 1).norm().item()} if fitness > -1e-9 else None


def same(found, expected):
    """The same result, bit for bit."""
    assert torch.equal(found.best, expected.best)
    assert replace(found, best=None) == replace(expected, best=None)


# --- ends ----------------------------------------------------------------------------------------


def test_it_ends_when_the_problem_is_solved(tmp_path):
    problem = Ellipsoid()
    found = evolve(problem, EvolutionSettings(sigma=0.5), tmp_path)
    assert found.reason == "solved" and found.starts == 1
    assert found.generations == problem.generations
    assert found.evaluations == 8 * found.generations  # 4 + 3 log 5 = 8.8
    assert found.tests == {"distance": (found.best - 1).norm().item()}
    assert found.fitness > -1e-9
    assert found.fitness == problem.fitness(found.best[None])[0]


def test_it_ends_at_the_target_or_when_evaluations_are_used_up(tmp_path):
    found = evolve(Ellipsoid(), EvolutionSettings(target=-0.1), tmp_path / "target")
    assert found.reason == "target" and -0.1 <= found.fitness < -1e-9
    found = evolve(Ellipsoid(), EvolutionSettings(evaluations=33), tmp_path / "used")
    assert found.reason == "evaluations" and found.evaluations == 40  # whole generations of 8
    assert found.fitness == Ellipsoid().fitness(found.best[None])[0]


def test_a_start_is_given_up_and_the_next_has_more_members(tmp_path):
    found = evolve(Ellipsoid(), EVERY, tmp_path)
    record = storage.load(tmp_path / FILE, KIND)["search"]["fitness"]
    # 60 evaluations are 8 generations of 8, 5 of 12, 4 of 18, 3 of 27; all 300 are used after one
    # of 8 * 1.5^4.
    assert [tuple(each.shape) for each in record] == [(8, 8), (5, 12), (4, 18), (3, 27), (1, 40)]
    assert found.starts == 5
    assert found.evaluations == sum(each.numel() for each in record)


def test_cma_gives_up_a_start_that_leads_nowhere(tmp_path):
    class Flat(Ellipsoid):
        def fitness(self, population):
            return torch.full((len(population),), -1.0, dtype=torch.float64)

    assert evolve(Flat(), EvolutionSettings(evaluations=5000), tmp_path).starts > 1


def test_correlations_are_learnt_unless_the_search_is_separable(tmp_path):
    """A narrow valley across the axes costs the separable search many times the evaluations."""
    settings = EvolutionSettings(target=-1e-4, evaluations=8_000)
    used = {}
    for rotated in (False, True):
        for separable in (False, True):
            problem = Ellipsoid(6, 1e5, rotated)
            found = evolve(
                problem,
                replace(settings, separable=separable),
                tmp_path / f"{rotated} {separable}",
            )
            used[rotated, separable] = found.evaluations
    assert used[True, False] < 2 * used[False, False]
    assert used[True, True] > 4 * used[True, False]
    assert used[False, True] < 1.5 * used[False, False]


def test_many_parameters_are_searched_separably():
    assert not Search(499, EvolutionSettings()).separable
    search = Search(500, EvolutionSettings())
    assert search.separable
    assert search.ask().shape == (4 + int(3 * math.log(500)), 500)
    assert not Search(500, EvolutionSettings(separable=False)).separable


def test_the_seed_decides_and_numpys_own_generator_is_left_alone(tmp_path):
    import numpy as np

    before = np.random.get_state()[1].copy()
    first = evolve(Ellipsoid(), EVERY, tmp_path / "0")
    same(evolve(Ellipsoid(), EVERY, tmp_path / "again"), first)
    other = evolve(Ellipsoid(), replace(EVERY, seed=1), tmp_path / "1")
    assert not torch.equal(first.best, other.best)
    assert (np.random.get_state()[1] == before).all()


# --- goes on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("generations", [1, 2, 7, 8, 9, 13, 14, 17])
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, generations):
    """In the middle of a start, at its end, in later ones."""
    whole = evolve(Ellipsoid(), EVERY, tmp_path / "whole")
    with pytest.raises(KilledError):
        evolve(Ellipsoid(dies_after=generations), EVERY, tmp_path / "killed")
    rest = Ellipsoid()
    same(evolve(rest, EVERY, tmp_path / "killed"), whole)
    assert rest.generations == whole.generations - generations  # none is evaluated again
    one, other = (tmp_path / name / FILE for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def test_a_process_that_is_killed(tmp_path):
    text = f"""
import os, signal, torch
from pathlib import Path
from cellwright.train.evolution import evolve
from cellwright.train.search import EvolutionSettings

class Bowl:
    parameters, left = 4, 5
    def fitness(self, population):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return -(population - 1).square().sum(1)
    def solved(self, best, fitness):
        return None

evolve(Bowl(), EvolutionSettings(evaluations=100, save_every=0.0), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", text], env=os.environ, timeout=300)
    assert done.returncode == -signal.SIGKILL
    settings = EvolutionSettings(evaluations=100, save_every=0.0)
    rest = Ellipsoid(4, condition=1.0)
    found = evolve(rest, settings, tmp_path)
    assert rest.generations == found.generations - 4
    same(found, evolve(Ellipsoid(4, condition=1.0), settings, tmp_path / "whole"))


def test_a_run_that_has_ended_is_read(tmp_path):
    found = evolve(Ellipsoid(), EVERY, tmp_path)
    same(evolve(Ellipsoid(dies_after=0), EVERY, tmp_path), found)


def test_how_it_is_recorded_and_spread_does_not_matter(tmp_path):
    with pytest.raises(KilledError):
        evolve(Ellipsoid(dies_after=6), EVERY, tmp_path / "run")
    found = evolve(Ellipsoid(), replace(EVERY, save_every=1e9), tmp_path / "run")
    same(found, evolve(Ellipsoid(), EVERY, tmp_path / "whole"))


# --- mistakes ------------------------------------------------------------------------------------


def test_other_settings_do_not_go_on_with_a_run(tmp_path):
    with pytest.raises(KilledError):
        evolve(Ellipsoid(dies_after=2), EVERY, tmp_path)
    with pytest.raises(UsageError, match=r"sigma 0\.3, and now it is 0\.7"):
        evolve(Ellipsoid(), replace(EVERY, sigma=0.7), tmp_path)
    with pytest.raises(UsageError, match="parameters 5, and now it is 6"):
        evolve(Ellipsoid(6), EVERY, tmp_path)


def test_a_record_that_cannot_be_followed(tmp_path):
    with pytest.raises(KilledError):
        evolve(Ellipsoid(dies_after=3), EVERY, tmp_path)
    record = storage.load(tmp_path / FILE, KIND)
    record["search"]["fitness"][0][1] += torch.arange(8)  # another order: another mean
    storage.save(tmp_path / FILE, KIND, record)
    with pytest.raises(CheckpointError, match="3 generations come out differently"):
        evolve(Ellipsoid(), EVERY, tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        evolve(Ellipsoid(), EVERY, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "--sigma"),
        ({"population": 3}, "--population"),
        ({"evaluations": 0}, "--evaluations"),
        ({"patience": 0}, "--patience"),
        ({"growth": 0.5}, "--growth"),
        ({"separable": "yes"}, "--separable"),
        ({"ray_workers": -1}, "--ray-workers"),
        ({"target": math.nan}, "--target"),
    ],
)
def test_settings_are_checked(change, message):
    with pytest.raises(UsageError, match=message):
        EvolutionSettings(**change)


def test_fitness_is_one_number_a_member(tmp_path):
    class Wrong(Ellipsoid):
        def fitness(self, population):
            return super().fitness(population)[:, None]

    class NotANumber(Ellipsoid):
        def fitness(self, population):
            return super().fitness(population).index_fill(0, torch.tensor([2]), math.nan)

    with pytest.raises(InputError, match=r"one number for each of 8 members.*\(8, 1\)"):
        evolve(Wrong(), EvolutionSettings(), tmp_path)
    with pytest.raises(InputError, match="NaN for member 2"):
        evolve(NotANumber(), EvolutionSettings(), tmp_path)


@pytest.mark.parametrize(
    ("module", "workers", "extra"), [("cma", 0, "evolution"), ("ray", 2, "ray")]
)
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, module, workers, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"pip install 'cellwright\[{extra}\]'"):
        evolve(Ellipsoid(), EvolutionSettings(ray_workers=workers), tmp_path)


# --- flat parameters -----------------------------------------------------------------------------


def test_vectors_are_the_weights_of_modules():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()
    flat = FlatParameters(module)
    vectors, x = torch.randn(5, flat.count).double(), torch.randn(7, 3).double()
    together = vmap(lambda p: functional_call(module, p, (x,)))(flat.unflatten(vectors))
    for vector, found in zip(vectors, together, strict=True):
        flat.load(vector, module)
        assert torch.equal(torch.cat([p.flatten() for p in module.parameters()]), vector)
        torch.testing.assert_close(module(x), found)  # sums in another order
