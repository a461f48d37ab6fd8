"""Compiled and exported programs: the engine is chosen when they run, and it is this one."""

import io

import pytest
import torch
from engines.cpu.cpu_cases import assert_equal
from engines.cpu.test_cpu_layers import B, I, T, make, randn, weighted

import cellwright as cw
from cellwright.engines.cpu import CpuEngine


@pytest.fixture
def calls(monkeypatch):
    """Which of the engine's methods have run."""
    seen = []
    for name in ("forward", "backward"):
        original = getattr(CpuEngine, name)

        def counted(self, *given, original=original, name=name, **options):
            seen.append(name)
            return original(self, *given, **options)

        monkeypatch.setattr(CpuEngine, name, counted)
    return seen


def train(layer, run, x, **arguments):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y, state, *trace = run(x, **arguments)
    weighted([y, *state, *(trace[0].values() if trace else ())]).backward()
    found = {"y": y.detach(), "d x": x.grad}
    found |= {name: value.detach() for name, value in state._asdict().items()}
    return found | {f"d {name}": p.grad.clone() for name, p in layer.named_parameters()}


def compiled(layer):
    return torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)


def test_compiled(calls):
    """One graph, the same bits as without compiling; then any other length."""
    layer = make("lstm", num_layers=2, bidirectional=True)
    run = compiled(layer)
    for steps in (T, 9):
        x = randn(steps, B, I)
        expected = train(layer, layer, x)
        calls.clear()
        found = train(layer, run, x)
        assert sorted(calls) == ["backward"] * 4 + ["forward"] * 4
        assert_equal(found, expected, f"compiled, {steps} steps")


def test_compiled_with_lengths_resets_and_a_trace(calls):
    layer = make("gru_v1", layer_norm=True)
    arguments = {
        "lengths": torch.tensor([T, 0, 2]),
        "reset": torch.arange(T * B).reshape(T, B) % 4 == 1,
        "trace": True,
    }
    x = randn(T, B, I)
    expected = train(layer, layer, x, **arguments)
    calls.clear()
    assert_equal(train(layer, compiled(layer), x, **arguments), expected, "compiled")
    assert calls == ["forward", "backward"]


def test_the_engine_is_chosen_when_the_program_runs(calls):
    layer = make("gru")
    run = compiled(layer)
    x = randn(T, B, I)
    with cw.engine("reference"), torch.no_grad():
        reference, _ = run(x)
        expected, _ = layer(x)
    assert not calls
    assert torch.equal(reference, expected)
    with torch.no_grad():
        found, _ = run(x)
        expected, _ = layer(x)
    assert calls == ["forward"] * 2
    assert torch.equal(found, expected)


def test_exported(calls):
    layer = make("lstm", num_layers=2)
    steps, batch = torch.export.Dim("steps", min=1), torch.export.Dim("batch", min=1)
    program = torch.export.export(
        layer, (randn(T, B, I),), dynamic_shapes={"x": {0: steps, 1: batch}}
    )
    content = io.BytesIO()
    torch.export.save(program, content)
    content.seek(0)
    run = torch.export.load(content).module()
    for shape in ((T, B), (1, 1), (8, 2)):
        x = randn(*shape, I)
        expected, after = layer(x)
        calls.clear()
        y, state = run(x)
        assert calls == ["forward"] * 2
        assert torch.equal(y, expected)
        assert torch.equal(state[1], after.c)


def test_under_torch_func_the_numbers_agree():
    """Transformed functions go through torch's operations: other sums, the same numbers."""
    layer = make("gru")
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x = randn(T, B, I)

    def loss(weights):
        return weighted([torch.func.functional_call(layer, weights, (x,))[0]])

    found = torch.func.grad(loss)(parameters)
    weighted([layer(x)[0]]).backward()
    for name, parameter in layer.named_parameters():
        # Sums in another order: 1e-16 each, some tens of terms, five steps.
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-11, atol=1e-11)
