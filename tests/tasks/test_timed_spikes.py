"""Generating timed spikes: streams of training and tests by turns, until a test is passed."""

import pytest
import torch

import cellwright as cw
from cellwright import tasks
from cellwright.errors import CheckpointError, UsageError
from cellwright.tasks import timed_spikes
from cellwright.tasks.timed_spikes import Generator, Learning, TimedSpikesSettings


def weights(learning):
    return torch.cat([each.detach().flatten() for each in learning.generator.parameters()])


def test_the_net_is_the_papers():
    generator = Generator(TimedSpikesSettings())
    layer = generator.recurrent
    assert layer.gradient == "truncated" and layer.cell.name == "peephole_lstm_unsquashed"
    assert [layer.parameter(f"b.{gate}").item() for gate in "ifo"] == [0.0, 2.0, -2.0]
    rest = [layer.parameter(name) for name in ("U.i", "U.f", "U.g", "U.o", "V.i", "V.o", "b.g")]
    for each in [*rest, *generator.head.parameters()]:
        assert 0 < each.abs().item() <= 0.1
    logistic = Generator(TimedSpikesSettings(output="logistic"))
    logistic.load_state_dict(generator.state_dict())
    # float32: one sigmoid.
    torch.testing.assert_close(logistic(9), generator(9).sigmoid(), rtol=0, atol=1e-6)


def test_one_update_is_gradient_descent_on_the_stream_to_its_first_wrong_output():
    settings = TimedSpikesSettings(period=4, cycles=3, momentum=0.0, gradient_clip=1e6, seed=3)
    learning = Learning(settings)
    before = weights(learning)
    generator = Generator(settings)
    generator.load_state_dict(learning.generator.state_dict())
    outputs = generator(12)[:, 0, 0]
    assert (outputs[:3].abs() < 0.49).all() and (outputs[3] - 1).abs() > 0.49
    target = torch.tensor([0.0, 0.0, 0.0, 1.0])
    loss = 0.5 * (outputs[:4] - target).square().sum()
    gradient = torch.autograd.grad(loss, list(generator.parameters()))
    expected = before - 0.05 * torch.cat([each.flatten() for each in gradient])
    learning.advance()
    assert learning.streams == 1 and learning.most == 0 and not learning.solved
    # float32: four terms, and a step of a twentieth of them.
    torch.testing.assert_close(weights(learning), expected, rtol=0, atol=1e-6)


def test_it_learns_and_then_leaves_the_weights_alone(monkeypatch):
    monkeypatch.setattr(timed_spikes, "TEST_SPIKES", 40)
    quick = {"learning_rate": 0.1, "momentum": 0.9, "gradient": "full", "init": "uniform:1"}
    learning = Learning(TimedSpikesSettings(period=3, cycles=2, **quick))
    while not learning.solved and learning.streams < 2_000:
        learning.advance()
    assert learning.solved and learning.most == 40
    before = weights(learning)
    outputs = learning.generator(120)[:, 0, 0].detach()
    assert ((outputs > 0.5).nonzero()[:, 0] + 1).tolist() == list(range(3, 121, 3))
    assert torch.equal(weights(learning), before)


def test_a_run_goes_on_where_it_was_killed(tmp_path):
    settings = TimedSpikesSettings(streams=30, period=3)
    whole = timed_spikes.run(settings, tmp_path)
    first = Learning(settings)
    while first.streams < 11:
        first.advance()
    (tmp_path / "half").mkdir()
    path = tmp_path / "half" / "progress.safetensors"
    timed_spikes.storage.save(path, timed_spikes.KIND, first.state())
    again = timed_spikes.run(settings, tmp_path / "half")
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert whole["streams"] == 30 and not whole["solved"] and whole["parameters"] == 17
    ends = [Learning(settings), Learning(settings)]
    ends[0].load(tmp_path / "progress.safetensors")
    ends[1].load(path)
    assert torch.equal(weights(ends[0]), weights(ends[1]))
    with pytest.raises(CheckpointError, match="other settings"):
        Learning(TimedSpikesSettings(streams=30, period=4)).load(path)


def test_training_that_diverges_is_told():
    learning = Learning(TimedSpikesSettings())
    with torch.no_grad():
        learning.generator.recurrent.parameter("b.g").fill_(torch.inf)
    with pytest.raises(UsageError, match=r"stream 1 is not finite.*--learning-rate than 0\.05"):
        learning.advance()


def test_both_sides_of_a_case_differ_in_the_cell_alone():
    experiment = tasks.get("timed-spikes")
    for output in timed_spikes.OUTPUTS:
        sides = [each for each in experiment.cases if each.name.endswith(f"{output} output")]
        with_, without = [experiment.settings({**e.options, **e.changes}) for e in sides]
        assert with_.output == without.output == output
        changed = {k for k, v in vars(with_).items() if v != getattr(without, k)}
        assert changed == {"cell"}
        cells = [cw.cells.get(each.cell) for each in (with_, without)]
        names = [{each.name for each in cell.parameters} for cell in cells]
        assert names[0] - names[1] == {"V.i", "V.f", "V.o"} and names[1] <= names[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "tanh"}, r"--output: expected one of linear, logistic, got 'tanh'"),
        ({"period": 1}, r"--period: .* 2 or more, got 1"),
        ({"cycles": 0}, r"--cycles: .* got 0"),
        ({"momentum": 1.0}, r"--momentum: .* below 1, got 1.0"),
        ({"cell": ""}, r"--cell: expected a name or path.py:cell"),
        ({"tolerance": 0.3}, r"--tolerance: the task timed-spikes has no such setting"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(UsageError, match=message):
        tasks.get("timed-spikes").settings(changes)
