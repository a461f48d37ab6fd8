"""Memory that is lent, comes back, and is lent again."""

import gc
import threading

import pytest
import torch
from engines.cpu.cpu_cases import ENGINE, assert_equal, by_engine
from engines.cpu.test_cpu_bits import call_of

from cellwright.engines.cpu import lending
from cellwright.engines.cpu.lending import FROM, Lender

SHAPE = (FROM // 4, 2)  # of float32: twice the least that is lent


def place(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool], ids=str)
def test_what_nobody_holds_is_lent_again(dtype):
    lender = Lender()
    first = lender.take((FROM, 3), dtype)
    assert (first.shape, first.dtype, first.is_contiguous()) == ((FROM, 3), dtype, True)
    assert not first._is_view()
    before = place(first)
    del first
    assert place(lender.take((3, FROM), dtype)) == before


def test_what_a_view_holds_is_not():
    lender = Lender()
    first = lender.take(SHAPE, torch.float32)
    part = first[5:, 1]
    part.fill_(3.0)
    del first
    other = lender.take(SHAPE, torch.float32)
    assert place(other) != place(part)
    other.fill_(4.0)
    assert (part == 3.0).all()


def test_an_array_much_too_long_is_not_lent():
    lender = Lender()
    long = lender.take((2 * FROM,), torch.float32)
    before = place(long)
    del long
    assert place(lender.take((FROM,), torch.float32)) != before
    assert place(lender.take((2 * FROM - 5,), torch.float32)) == before


def test_the_shortest_that_is_long_enough_is_lent():
    lender = Lender()
    arrays = [lender.take((FROM + extra,), torch.float32) for extra in (200, 0, 100)]
    places = [place(each) for each in arrays]
    del arrays
    assert place(lender.take((FROM + 50,), torch.float32)) == places[2]


def test_arrays_of_one_piece_come_back_when_the_last_is_gone():
    lender = Lender()
    kinds = [(SHAPE, torch.float32), ((3, 5), torch.float64), ((FROM, 2), torch.bool)]
    arrays = lender.take_together(kinds)
    for each, (shape, dtype) in zip(arrays, kinds, strict=True):
        assert (each.shape, each.dtype, each.is_contiguous()) == (shape, dtype, True)
        assert not each._is_view()
    before, after = place(arrays[0]), place(arrays[2])
    assert after - before >= arrays[0].nbytes + lending.APART
    arrays[2].fill_(True)
    arrays[0].fill_(3.0)
    assert arrays[2].all()
    last = arrays.pop()
    del arrays, each
    assert not lender._idle and not lender._returned
    del last
    assert place(lender.take_together(kinds)[0]) == before


def test_short_arrays_are_torchs_own():
    lender = Lender()
    lender.take((3, 5), torch.float32)
    assert not lender._lent


def test_no_more_waits_than_is_allowed(monkeypatch):
    monkeypatch.setattr(lending, "IDLE", 20 * FROM)
    lender = Lender()
    arrays = [lender.take((count * FROM,), torch.bool) for count in (8, 7, 6)]
    places = [place(each) for each in arrays]
    for _ in range(3):
        arrays.pop(0)
    assert sum(each.nbytes for each in lender._idle) == 13 * FROM
    assert place(lender.take((7 * FROM,), torch.bool)) == places[1]


def test_fresh_memory_holds_no_lucky_numbers():
    lender = Lender()
    for number in range(2):  # new, and lent again
        array = lender.take(SHAPE, torch.float32)
        assert array.isnan().all(), number
        array.zero_()
        del array


def test_it_waits_for_nobody():
    """Neither for a thread that is at work, nor for one that a fork has left behind."""
    lender = Lender()
    first = lender.take(SHAPE, torch.float32)
    before = place(first)
    with lender._busy:
        del first
        other = lender.take(SHAPE, torch.float32)
        assert place(other) != before
    assert place(lender.take(SHAPE, torch.float32)) == before


def test_threads_never_share_an_array():
    lender = Lender()
    wrong = []

    def work(number):
        for _ in range(300):
            array = lender.take(SHAPE, torch.float32)
            array.fill_(number)
            copy = array.view(-1)[::997].clone()
            if not (copy == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_gradients_in_memory_that_was_lent_before(name, monkeypatch):
    monkeypatch.setattr(lending, "FROM", 1)
    call = call_of(name)
    results, gradients, cotangents = by_engine(ENGINE, call)
    gc.collect()
    assert lending.lender._idle
    before = {each.ctypes.data for each in lending.lender._idle}
    found = by_engine(ENGINE, call, cotangents)
    assert_equal(found[0], results, name)
    assert_equal(found[1], gradients, name)
    gc.collect()
    assert before == {each.ctypes.data for each in lending.lender._idle}
    lending.lender.clear()
