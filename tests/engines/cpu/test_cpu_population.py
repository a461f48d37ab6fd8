"""A population: every member has the bits that it has alone, for results and for gradients."""

from dataclasses import replace

import pytest
import torch
from engines.cases import (
    CATALOGUE,
    Shape,
    draw_cotangents,
    gradients_of,
    make_call,
    results_of,
)
from engines.cpu.cpu_cases import ENGINE, assert_equal, by_cpu, by_engine
from engines.cpu.test_cpu_bits import Launches, call_of, every_call

import cellwright as cw
from cellwright.engines import Cotangents
from cellwright.engines.cpu import members, threads
from cellwright.plan import StepOptions

MEMBERS = 5


def population_of(call, count=MEMBERS):
    """As many calls that differ in every tensor, as one."""

    def each(tensor, number):
        if not tensor.is_floating_point():
            return tensor.roll(number, 0)
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        return tensor + 0.3 * noise

    def stack(tensor):
        return torch.stack([each(tensor, number) for number in range(count)])

    return replace(
        call,
        x=stack(call.x),
        states=[*map(stack, call.states)],
        weights=[*map(stack, call.weights)],
        streams=[*map(stack, call.streams)],
        population=count,
    )


def one_by_one(call, cotangents):
    """What each member yields by itself."""
    return [
        by_engine(ENGINE, member, cotangents.of_member(number))[:2]
        for number, member in enumerate(call.members())
    ]


def check(found, expected, what):
    """Results and gradients of a population against those of its members."""
    for part, tensors in enumerate(found[:2]):
        for number, member in enumerate(expected):
            of_member = {name: value[number] for name, value in tensors.items()}
            assert_equal(of_member, member[part], f"member {number} {what}")


@pytest.fixture
def teams(monkeypatch):
    """Let small populations be shared out too, and tell how they were."""
    monkeypatch.setattr(members, "ALONE_BELOW", 0)
    return Launches(monkeypatch)


@every_call
def test_a_member_has_the_bits_that_it_has_alone(name, teams):
    population = population_of(call_of(name))
    one = by_cpu(population)
    expected = one_by_one(population, one[2])
    check(one, expected, "on one thread")
    assert (threads.SHARES, 2) not in teams.seen
    torch.set_num_threads(2)
    two = by_cpu(population, one[2])
    check(two, expected, "on two threads")
    assert (threads.SHARES, 2) in teams.seen


@every_call
def test_every_thread_has_working_memory_of_its_own(name, teams, monkeypatch):
    """Threads are at different programs: what they share has to be cut the same way in all."""
    torch.set_num_threads(2)
    original, found = members.Script.run, []

    def run(script):
        parts = {}
        for _, _, numbers in script._programs:
            count = len(numbers) // 3
            for address, apart in zip(numbers[:count], numbers[2 * count :], strict=True):
                if apart:
                    memory = [m for m in script.held if 0 <= address - m.data_ptr() < m.nbytes]
                    assert len(memory) == 1
                    parts.setdefault(memory[0].data_ptr(), set()).add(apart)
                    rest = memory[0].nbytes - (address - memory[0].data_ptr())
                    assert apart < rest, "the second thread's part begins inside"
        assert all(len(each) == 1 for each in parts.values())
        found.append(len(parts))
        original(script)

    monkeypatch.setattr(members.Script, "run", run)
    by_engine(ENGINE, population_of(call_of(name)))
    assert len(found) == 2 and min(found) > 0


def test_bits_on_a_processor_with_narrower_vectors(monkeypatch):
    population = population_of(call_of("norm"))
    wide = by_cpu(population)
    monkeypatch.setenv("CELLWRIGHT_CPU_FEATURES", "avx2")
    narrow = by_cpu(population, wide[2])
    assert_equal(narrow[0], wide[0], "avx2")
    assert_equal(narrow[1], wide[1], "avx2")


@pytest.mark.parametrize("heads", [1, 2])
def test_products_of_bfloat16_numbers(heads, teams):
    options = StepOptions(precision="bf16", heads=heads)
    call = make_call(CATALOGUE["gru_v1"], options, Shape(5, 7, 4, 18), dtype=torch.float32)
    population = population_of(call)
    torch.set_num_threads(2)
    found = by_cpu(population)
    check(found, one_by_one(population, found[2]), "in bfloat16")


@pytest.mark.parametrize("shared", ["x", "states", "weights", "streams", "all"])
def test_what_members_share_lies_in_memory_once(shared, teams):
    torch.set_num_threads(2)
    population = population_of(call_of("projection"))
    for part in ("x", "states", "weights", "streams") if shared == "all" else (shared,):
        held = getattr(population, part)
        same = [each[:1].expand(each.shape) for each in (held if part != "x" else [held])]
        population = replace(population, **{part: same if part != "x" else same[0]})
    result = ENGINE.forward(population, keep=True)
    cotangents = draw_cotangents(result)
    gradients = ENGINE.backward(population, result.kept, cotangents, need_x=True)
    found = (
        results_of(result, population),
        gradients_of(gradients.x, gradients.states, gradients.weights, population),
    )
    check(found, one_by_one(population, cotangents), f"with {shared} in common")


@pytest.mark.parametrize("turned", ["members", "batch", "units"])
def test_tensors_may_lie_in_memory_in_any_order(turned):
    population = population_of(call_of("gru"))

    def other(each):
        axis = {"members": 0, "batch": 1, "units": each.dim() - 1}[turned]
        return each.movedim(axis, -2).contiguous().movedim(-2, axis)

    moved = replace(
        population, x=other(population.x), states=[*map(other, population.states)],
        weights=[*map(other, population.weights)],
    )  # fmt: skip
    expected = by_engine(ENGINE, population)
    found = by_engine(ENGINE, moved, expected[2])
    assert_equal(found[0], expected[0], "turned")
    assert_equal(found[1], expected[1], "turned")


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("team", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "of parameters"])
def test_one_member_or_none(count, team, name):
    torch.set_num_threads(team)
    call = call_of(name)
    population = replace(
        population_of(call, 1),
        **{
            part: [each[:count] for each in getattr(population_of(call, 1), part)]
            for part in ("states", "weights", "streams")
        },
        x=population_of(call, 1).x[:count],
        population=count,
    )
    found = by_engine(ENGINE, population)
    assert found[0]["output"].shape == (count, 5, 7, 33)
    check(found, one_by_one(population, found[2]), "alone")
    for value in (*found[0].values(), *found[1].values()):
        assert value.shape[0] == count


def test_only_what_is_asked_for():
    population = population_of(call_of("lstm"))
    result = ENGINE.forward(population, keep=True)
    cotangents = draw_cotangents(result)
    whole = ENGINE.backward(population, result.kept, cotangents, need_x=True)
    part = ENGINE.backward(population, result.kept, cotangents, need_x=False, need_weights=False)
    assert part.x is None and part.weights == []
    assert all(map(torch.equal, part.states, whole.states))


def test_gradients_that_are_the_same_for_all(teams):
    """Cotangents may lie in memory once, as those of a sum do."""
    population = population_of(call_of("gru"))
    result = ENGINE.forward(population, keep=True)
    ones = Cotangents(
        torch.ones(()).expand_as(result.output),
        [torch.zeros(()).expand_as(each) for each in result.states],
        [],
    )
    found = by_engine(ENGINE, population, ones)
    check(found, one_by_one(population, ones), "with ones")


@pytest.mark.parametrize("train", [False, True])
def test_a_population_is_one_launch(train, teams):
    """However many members there are; training takes one more for the gradient."""
    calls = []
    original = threads.launch

    def launch(address, arguments, rows, how, team):
        calls.append(rows)
        original(address, arguments, rows, how, team)

    layers = [cw.nn.LSTM(3, 4) for _ in range(20)]
    weights, _ = torch.func.stack_module_state(layers)
    x = torch.randn(6, 1, 3)

    def outputs(weights):
        return torch.func.functional_call(layers[0], weights, (x,))[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "launch", launch)
        with torch.set_grad_enabled(train):
            y = torch.func.vmap(outputs)(weights)
        if train:
            y.sum().backward()
    assert calls == [20] * (1 + train)
