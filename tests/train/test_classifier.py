"""The model's parts: standardising, disturbing, pooling; and that padding never counts."""

from __future__ import annotations

import pytest
import torch

import cellwright as cw
from cellwright.errors import InputError
from cellwright.train.batches import seed_everything
from cellwright.train.classifier import Disturb, SequenceClassifier, Standardise, pool
from cellwright.train.settings import POOLINGS, Settings


def test_standardise_measures_mean_and_deviation():
    layer = Standardise(3)
    frames = torch.randn(200, 3).double() * torch.tensor([5.0, 1e-3, 0.0]) + torch.tensor(
        [100.0, 1e6, 0.1]
    )
    layer.measure(frames)
    out = layer(frames.float()[:, None])
    assert torch.allclose(out[..., 0].mean(), torch.tensor(0.0), atol=1e-4)
    assert torch.allclose(out[..., 0].std(correction=0), torch.tensor(1.0), atol=1e-4)
    # A feature that never changes has no scale: it is only shifted.
    assert layer.deviation[2] == 1
    assert out[..., 2].abs().max() < 1e-6


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("directions", [1, 2])
def test_pooling_counts_a_sequence_s_own_steps_alone(how, directions):
    y = torch.randn(6, 3, 4)
    lengths = torch.tensor([6, 1, 4])
    found = pool(y, lengths, how, directions)
    for index, length in enumerate(lengths.tolist()):
        own = y[:length, index]
        last = torch.cat([own[-1, :2], own[0, 2:]]) if directions == 2 else own[-1]
        wanted = {
            "last": last,
            "mean": own.mean(0),
            "max": own.amax(0),
            "mean-max": torch.cat([own.mean(0), own.amax(0)]),
        }[how]
        assert torch.allclose(found[index], wanted, atol=1e-6)


@pytest.mark.parametrize("how", POOLINGS)
def test_padding_and_company_do_not_change_an_answer(how):
    settings = Settings(hidden_size=5, num_layers=2, pooling=how)
    model = SequenceClassifier(cw.cells.get("gru"), 3, 4, settings).eval()
    x, lengths = torch.randn(7, 4, 3), torch.tensor([7, 1, 5, 2])
    together = model(x, lengths)
    for index, length in enumerate(lengths.tolist()):
        alone = model(x[:length, index : index + 1], lengths[index : index + 1])
        # Sums over the batch's rows are taken apart otherwise by the matrix product's kernel.
        assert torch.allclose(together[index], alone[0], atol=1e-5)


def test_disturbing_happens_in_training_only():
    layer = Disturb(noise=0.1, offset=0.2, crop=0.5)
    x, lengths = torch.randn(9, 3, 2), torch.tensor([9, 1, 6])
    same, same_lengths = layer.eval()(x, lengths)
    assert same is x
    assert same_lengths is lengths
    other, _ = layer.train()(x, lengths)
    assert not torch.equal(other, x)


def test_cropping_takes_a_part_from_within():
    layer = Disturb(noise=0.0, offset=0.0, crop=0.6)
    lengths = torch.tensor([10, 1, 2, 7])
    x = torch.arange(10.0)[:, None, None].expand(10, 4, 1)
    seen = set()
    for seed in range(200):
        torch.manual_seed(seed)
        out, kept = layer(x, lengths)
        for index, (length, whole) in enumerate(zip(kept.tolist(), lengths.tolist(), strict=True)):
            assert whole - int(0.6 * whole) <= length <= whole
            part = out[:length, index, 0]
            assert torch.equal(part, part[0] + torch.arange(length))
            assert part[-1] < whole
            if index == 0:
                seen.add((int(part[0]), length))
    assert seen == {(s, n) for n in range(4, 11) for s in range(0, 10 - n + 1)}


def test_an_offset_is_the_same_at_every_step():
    out, _ = Disturb(noise=0.0, offset=1.0, crop=0.0)(torch.zeros(5, 3, 2), torch.full((3,), 5))
    assert torch.equal(out, out[:1].expand_as(out))
    assert out[0].unique().numel() == 6


@pytest.mark.parametrize("cell", ["lstm", "elman", "mut1", "lstm_projection"])
def test_any_cell_gives_logits_and_gradients(cell):
    settings = Settings(hidden_size=4, sizes={"projection": 3} if "proj" in cell else {})
    model = SequenceClassifier(cw.cells.get(cell), 2, 3, settings)
    logits = model(torch.randn(5, 2, 2), torch.tensor([5, 3]))
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match="classes: expected at least 2, got 1"):
        SequenceClassifier(cw.cells.get("lstm"), 2, 1, Settings())
    with pytest.raises(InputError, match="has no size 'projection'"):
        SequenceClassifier(cw.cells.get("lstm"), 2, 2, Settings(sizes={"projection": 2}))


def test_batches_hold_each_series_once_and_order_follows_from_seed_and_epoch(series):
    batches = series.batches(8, seed=3)
    assert len(batches) == 4
    orders = set()
    for epoch in range(3):
        batches.epoch = epoch
        orders.add(tuple(batches.order()))
        assert sorted(batches.order()) == list(range(30))
        assert sum(len(batch.targets) for batch in batches) == 30
    assert len(orders) == 3
    again = series.batches(8, seed=3)
    again.epoch = 2
    assert again.order() == batches.order()
    for x, lengths, *_ in batches:
        for index, length in enumerate(lengths.tolist()):
            assert not x[length:, index].any()


def test_an_epoch_s_chance_follows_from_seed_and_epoch():
    seed_everything(5, 2)
    first = torch.rand(3)
    seed_everything(5, 3)
    assert not torch.equal(torch.rand(3), first)
    seed_everything(5, 2)
    assert torch.equal(torch.rand(3), first)
