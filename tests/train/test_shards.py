"""Parts of a batch: together they are the batch, and their gradients average to its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from cellwright.train import objectives
from cellwright.train.examples import IGNORED, Batch
from cellwright.train.sequences import Sequences
from cellwright.train.shards import Shards, add_up, gather, gather_states, share_out
from cellwright.train.streams import Streams
from cellwright.train.windows import Windows


def of(lengths, *, classes=False):
    torch.manual_seed(0)
    inputs = [torch.randn(steps, 2) for steps in lengths]
    if classes:
        targets = [torch.randint(0, 3, (steps,)) for steps in lengths]
        targets[0][:2] = IGNORED
    else:
        targets = [torch.randn(steps, 1) for steps in lengths]
    return Sequences(inputs, targets, ("a", "b"), ("y",))


@pytest.mark.parametrize("objective", ["classes", "values"])
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("windows", [None, 3])
def test_gradients_of_the_parts_average_to_that_of_the_whole(objective, processes, windows):
    objective = objectives.get(objective)
    data = of([7, 2, 5, 4, 7, 1, 3], classes=objective.name == "classes")
    head = nn.Linear(2, 3 if objective.name == "classes" else 1)

    def gradients(loader):
        found = []
        for batch in loader:
            head.zero_grad()
            outputs = head(batch.x)
            loss = (
                objective.loss(outputs, batch.targets) * batch.share
                if batch.share
                else outputs.sum() * 0.0
            )
            loss.backward()
            found.append(head.weight.grad.clone())
        return found

    def loader():
        batches = data.batches(4, seed=1)
        return batches if windows is None else Windows(batches, windows)

    whole = gradients(loader())
    parts = [
        gradients(share_out(loader(), rank, processes, objective.count))
        for rank in range(processes)
    ]
    assert len(whole) > 1
    for number, expected in enumerate(whole):
        mean = sum(part[number] for part in parts) / processes
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


def test_the_parts_are_the_batch_and_streams_stay_where_they_are():
    data = of([6, 6, 6, 6, 6])
    count = objectives.get("values").count
    whole = list(Windows(data.batches(5), 4))
    parts = [list(Shards(Windows(data.batches(5), 4), rank, 2, count)) for rank in range(2)]
    for number, batch in enumerate(whole):
        for rank in range(2):
            part = parts[rank][number]
            assert torch.equal(part.x, batch.x[:, rank::2])
            assert torch.equal(part.targets, batch.targets[:, rank::2])
            assert torch.equal(part.reset, batch.reset[:, rank::2])
            assert torch.equal(part.lengths, batch.lengths[rank::2])
    assert [part[0].share for part in parts] == pytest.approx([6 / 5, 4 / 5])


def test_a_process_without_a_sequence_has_no_weight():
    batch = Batch(torch.zeros(3, 1, 2), torch.tensor([3]), torch.tensor([1]))

    class One:
        epoch = 0

        def __iter__(self):
            yield batch

    shares = [next(iter(share_out(One(), rank, 2, len))).share for rank in range(2)]
    assert shares == [2.0, 0.0]


def test_one_process_has_the_loader_itself():
    loader = of([3, 3]).batches(2)
    assert share_out(loader, 0, 1, len) is loader
    parted = share_out(loader, 1, 2, len)
    assert len(parted) == 1
    parted.epoch = 4
    assert loader.epoch == 4
    assert not hasattr(share_out(Windows(loader, 2), 0, 2, len), "__len__")


@pytest.fixture
def two(monkeypatch):
    """Talk among two processes, where the other one's part is made up."""

    def talk(theirs):
        def all_gather(into, mine):
            into[:] = [mine, theirs(mine)]

        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(distributed, "all_gather_object", all_gather)
        monkeypatch.setattr(distributed, "all_reduce", lambda mine: mine.add_(theirs(mine)))

    return talk


def test_what_processes_counted_is_put_together_in_the_order_of_the_batch(two):
    two(lambda mine: (2, [False, True]))
    assert gather(3, [True, True, False], empty=False) == (5, [True, False, True, True, False])
    two(lambda mine: (0, []))
    assert gather(1, [True], empty=False) == (1, [True])
    two(lambda mine: torch.ones(2))
    mine = torch.tensor([1.0, 2.0])
    assert add_up(mine).tolist() == [2.0, 3.0]
    assert mine.tolist() == [1.0, 2.0]


def test_states_of_streams_survive_a_checkpoint(two):
    whole = torch.arange(2.0 * 5 * 3).reshape(2, 5, 3)
    parts = [{"train": (whole[:, rank::2], -whole[:, rank::2])} for rank in range(2)]
    two(lambda mine: parts[1])
    together = gather_states(parts[0])
    assert torch.equal(together["train"][0], whole)
    assert torch.equal(together["train"][1], -whole)
    for rank in range(2):
        own = Shards(None, rank, 2, len).own_states(together)
        assert torch.equal(own["train"][0], whole[:, rank::2])


class Counting:
    """A stream whose only number is the step."""

    def __init__(self, seed, streams):
        self.streams, self.at = streams, 0

    def window(self, steps):
        x = torch.arange(self.at, self.at + steps).float()[:, None, None]
        self.at += steps
        x = x.expand(steps, self.streams, 1)
        return x, x, torch.zeros(steps, self.streams, dtype=torch.bool)

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, position):
        self.at = position["at"]


def test_the_position_of_streams_is_that_of_every_part():
    streams = Streams(Counting, ("x",), ("y",), steps=3, count=2)
    parted = share_out(streams.batches(4, seed=0), 1, 2, objectives.get("values").count)
    assert [batch.x[0, 0, 0].item() for batch in parted] == [0.0, 3.0]
    position = parted.state_dict()
    assert position == {"at": 6}
    again = share_out(streams.batches(4, seed=0), 1, 2, objectives.get("values").count)
    again.load_state_dict(position)
    assert next(iter(again)).x.shape == (3, 2, 1)
    assert again.state_dict() == {"at": 9}
    assert share_out(of([3, 3]).batches(2), 0, 2, len).state_dict() == {}
