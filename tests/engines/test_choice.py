"""Which engine runs, and why: asked for, or chosen with a reason."""

import threading

import pytest
import torch
from engines.cases import CATALOGUE, make_call

import cellwright as cw
from cellwright import engines
from cellwright.engines import choice
from cellwright.errors import EngineError, UsageError

CPU = torch.device("cpu")


def chosen(dtype=torch.float32):
    return engines.choose(make_call(CATALOGUE["lstm"]).signature, CPU, dtype)


def test_the_reference_engine_runs_everything():
    assert "reference" in engines.names()
    reference = engines.get("reference")
    assert reference.name == "reference"
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        signature = make_call(CATALOGUE["slstm"]).signature
        assert reference.objection(signature, CPU, dtype) is None


def test_a_choice_has_a_reason():
    found = chosen()
    assert found.engine.name in engines.names()
    assert found.reason


def test_an_engine_is_loaded_once():
    assert engines.get("reference") is engines.get("reference")


def test_an_unknown_engine_is_a_usage_error_that_lists_the_known():
    for ask in (engines.get, lambda name: cw.engine(name).__enter__()):
        with pytest.raises(UsageError) as caught:
            ask("warp")
        assert "'warp'" in str(caught.value)
        assert "reference" in str(caught.value)


def test_a_block_asks_for_an_engine_and_ends():
    before = chosen().reason
    with cw.engine("reference"):
        assert chosen().engine.name == "reference"
        assert "reference" in chosen().reason
        assert chosen().reason != before or len(engines.names()) == 1
        with cw.engine("reference"):
            assert chosen().engine.name == "reference"
        assert "asked for" in chosen().reason
    assert chosen().reason == before


def test_a_block_ends_with_an_exception_too():
    before = chosen().reason
    with pytest.raises(ZeroDivisionError), cw.engine("reference"):
        raise ZeroDivisionError
    assert chosen().reason == before


def test_a_block_is_this_threads_alone():
    seen = []
    before = chosen().reason
    with cw.engine("reference"):
        other = threading.Thread(target=lambda: seen.append(chosen().reason))
        other.start()
        other.join()
    assert seen == [before]


def test_an_engine_that_objects_is_no_silent_fallback(monkeypatch):
    class Picky:
        name = "picky"
        purpose = "it shows how an engine objects"

        def objection(self, signature, device, dtype):
            return None if dtype == torch.float32 else f"it knows no {dtype}"

        def remark(self, signature):
            return "it has a remark"

    monkeypatch.setattr(choice, "_ENGINES", {"picky": ("", ""), **choice._ENGINES})
    monkeypatch.setitem(choice._loaded, "picky", Picky())
    assert chosen(torch.float32).engine.name == "picky"
    assert chosen(torch.float32).reason == "it shows how an engine objects; it has a remark"
    fallback = chosen(torch.float64)
    assert fallback.engine.name == engines.names()[1], "the next in the order of preference"
    assert "picky: it knows no torch.float64" in fallback.reason
    with cw.engine("picky"), pytest.raises(EngineError) as caught:
        chosen(torch.float64)
    assert "'picky'" in str(caught.value)
    assert "it knows no torch.float64" in str(caught.value)


def test_results_inside_a_block_are_those_outside():
    layer = cw.nn.Recurrent("gru", 3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    with cw.engine("reference"):
        inside, _ = layer(x)
    outside, _ = layer(x)
    # Another engine may add in another order.
    torch.testing.assert_close(inside, outside, rtol=1e-12, atol=1e-13)
