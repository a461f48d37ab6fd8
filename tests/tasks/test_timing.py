"""Spike delays to be measured, spikes and periodic functions to be generated."""

import hashlib
import math

import numpy as np
import pytest
import torch

from cellwright.errors import UsageError
from cellwright.tasks import periodic, spike_delays, timing


def digest(*tensors: torch.Tensor) -> str:
    content = hashlib.sha256()
    for each in tensors:
        content.update(each.numpy().tobytes())
    return content.hexdigest()[:16]


def test_delays_between_spikes_are_the_targets():
    x, lengths, targets = spike_delays.draw(
        np.random.default_rng(4), 50, period=6, delays=3, spikes=5
    )
    assert x.dtype == targets.dtype == torch.float32 and lengths.dtype == torch.int64
    assert x.shape == targets.shape == (int(lengths.max()), 50, 1)
    delays = set()
    for b, length in enumerate(lengths.tolist()):
        spikes, since = 0, 0
        for t in range(len(x)):
            since += 1
            if x[t, b, 0] == 1:
                assert targets[t, b, 0] == since - 6
                delays.add(since - 6)
                spikes, since = spikes + 1, 0
            else:
                assert x[t, b, 0] == 0 and targets[t, b, 0].isnan()
        assert spikes == 5 and x[length - 1, b, 0] == 1
    assert delays == {0, 1, 2}


def wave_by_the_formula(wave: str, period: int, t: int) -> float:
    phase = t % period
    if wave == "spike":
        return float(phase == 0)
    if wave == "cosine":
        return 0.5 * (1 - math.cos(2 * math.pi * phase / period))
    if wave == "rectangle":
        return float(phase > period / 2)
    return 2 * phase / period if phase <= period / 2 else 2 - 2 * phase / period


@pytest.mark.parametrize("wave", periodic.WAVES)
@pytest.mark.parametrize("period", [2, 10, 25])
def test_waves(wave, period):
    stream = periodic.Periodic(wave, period, streams=2)
    parts = [stream.window(steps) for steps in (7, 50, 3)]
    x, targets, reset = (torch.cat(each) for each in zip(*parts, strict=True))
    assert not x.any() and x.shape == targets.shape == (60, 2, 1)
    expected = [wave_by_the_formula(wave, period, t) for t in range(1, 61)]
    # cos may be told apart by an ulp of float64 from one platform to another; float32 has 2**-24.
    assert np.abs(targets[:, 1, 0].numpy() - np.array(expected)).max() < 2**-23
    assert torch.equal(targets[:, 0], targets[:, 1])
    assert reset[0].all() and not reset[1:].any()


def test_a_stream_goes_on_from_a_stored_position():
    stream = periodic.Periodic("triangle", 10)
    stream.window(13)
    position = stream.state_dict()
    expected = stream.window(29)
    other = periodic.Periodic("triangle", 10)
    other.load_state_dict(position)
    for mine, theirs in zip(other.window(29), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_streams_begin_anew_after_their_cycles():
    _, targets, reset = periodic.Periodic("spike", 4, cycles=3).window(30)
    assert reset[:, 0].nonzero()[:, 0].tolist() == [0, 12, 24]
    assert targets[:, 0, 0].nonzero()[:, 0].tolist() == [3, 7, 11, 15, 19, 23, 27]


def test_tolerances():
    assert periodic.Periodic("spike", 10).tolerance == 0.49
    assert periodic.Periodic("cosine", 10).tolerance == 0.3
    targets = torch.tensor([[[0.0]], [[1.0]], [[torch.nan]], [[1.0]]])
    outputs = torch.tensor([[[0.48]], [[1.5]], [[9.0]], [[torch.nan]]])
    right = timing.within_tolerance(outputs, targets, timing.SPIKE_TOLERANCE)
    assert right[:, 0].tolist() == [True, False, True, False]


def test_a_generated_stream_ends_at_its_first_wrong_value():
    objective = periodic.periodic_functions.objective
    targets = torch.zeros(5, 2, 1)
    outputs = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.4, 0.1], [9.0, 0.2], [0.0, 0.1]])[..., None]
    outputs.requires_grad_()
    loss = objective.loss(outputs, targets)
    first, second = [0.1, 0.2, 0.4], [0.1, 0.2, 0.1, 0.2, 0.1]
    assert loss.item() == pytest.approx(sum(v * v for v in first + second) / 8)
    loss.backward()
    assert (outputs.grad[:, 0, 0] != 0).tolist() == [True, True, True, False, False]
    assert objective.metric(outputs, targets).item() == (2 + 5) / 2
    assert objective.right(outputs, targets).tolist() == [False, True]
    everything = outputs.detach().square().mean().sqrt()
    assert objective.more["rmse"](outputs, targets).item() == pytest.approx(everything.item())


def test_the_same_on_every_platform():
    x, lengths, targets = spike_delays.draw(np.random.default_rng(1), 20, spikes=4, delays=5)
    assert digest(x, lengths, targets.nan_to_num(-1)) == "e7316ad4bc9a5af8"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: spike_delays.draw(r, 0), r"msd: count: .* at least 1, got 0"),
        (lambda r: spike_delays.draw(r, 1, period=0), r"msd: period: .* got 0"),
        (lambda r: spike_delays.draw(r, 1, delays=1), r"msd: delays: .* at least 2, got 1"),
        (lambda r: spike_delays.draw(r, 1, spikes=2.0), r"msd: spikes: .* got 2.0"),
        (
            lambda r: periodic.Periodic("sine", 10),
            r"spike, cosine, triangle, rectangle, got 'sine'",
        ),
        (lambda r: periodic.Periodic("spike", 1), r"periodic: period: .* at least 2, got 1"),
        (lambda r: periodic.Periodic("spike", 9, 0), r"periodic: streams: .* got 0"),
        (lambda r: periodic.Periodic("spike", 9, cycles=0), r"periodic: cycles: .* got 0"),
        (lambda r: periodic.Periodic("spike", 9).window(0), r"periodic: steps: .* got 0"),
    ],
)
def test_wrong_options(call, message):
    with pytest.raises(UsageError, match=message):
        call(np.random.default_rng(1))
