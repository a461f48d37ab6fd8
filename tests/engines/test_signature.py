"""A signature is enough to build the plan again: in a graph, and in another process."""

import gc
import json
import os
import subprocess
import sys

import pytest
from engines.cases import CATALOGUE, Shape, make_call, options_for

import cellwright as cw
from cellwright.engines import Signature, Slice, parse
from cellwright.errors import EngineError
from cellwright.lang import next_state, tanh
from cellwright.plan import StepOptions


@pytest.mark.parametrize("option", [*options_for(CATALOGUE["lstm"])])
def test_text_and_back(option):
    options = options_for(CATALOGUE["lstm"])[option]
    signature = make_call(CATALOGUE["lstm"], options, stacked=True).signature
    found = parse(signature.text)
    assert found == signature
    assert found.spec is signature.spec
    assert found.plan is signature.plan
    assert found.size == signature.size == {**dict(signature.sizes), "one": 1}
    assert found.text == signature.text


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_cell_is_found_again(name):
    signature = make_call(CATALOGUE[name], StepOptions(trace=True)).signature
    assert parse(signature.text).spec is CATALOGUE[name]


def test_the_text_is_short_and_plain():
    text = make_call(CATALOGUE["lstm"]).signature.text
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["sizes"] == [["hidden", 5], ["input", 3]]


def test_convolutions_are_told_apart():
    signature = make_call(CATALOGUE["lstm"]).signature
    flat = Signature(signature.spec, signature.options, signature.sizes, signature.slices, 2)
    assert parse(flat.text).spatial == 2
    assert flat.text != signature.text


def test_a_cell_made_in_a_function_is_known_in_this_process():
    def make():
        @cw.cell(state="h")
        def of_a_function(x, h, W):
            return next_state(h=tanh(W @ x + 0.123 * h))

        return make_call(of_a_function).signature

    signature = make()
    assert parse(signature.text) == signature


def test_a_cell_that_is_gone_is_asked_for_by_name():
    def text_alone():
        @cw.cell(state="h")
        def soon_gone(x, h, W):
            return next_state(h=tanh(W @ x + 0.321 * h))

        slices = (Slice("W", 0, 0, 3),)
        sizes = (("hidden", 3), ("input", 2))
        return Signature(soon_gone, StepOptions(), sizes, slices).text

    text = text_alone()
    gc.collect()
    with pytest.raises(EngineError, match="soon_gone"):
        parse(text)


def test_equations_that_have_changed_are_noticed():
    text = make_call(CATALOGUE["lstm"]).signature.text
    content = json.loads(text)
    content["fingerprint"] = "0" * 64
    with pytest.raises(EngineError, match=r"lstm.*changed"):
        parse(json.dumps(content))


def test_two_cells_of_one_name_are_told_apart():
    def make(factor):
        @cw.cell(state="h")
        def twin(x, h, W):
            return next_state(h=tanh(W @ x + factor * h))

        return make_call(twin, shape=Shape(2, 1, 2, 2)).signature

    first, second = make(0.5), make(0.25)
    assert first.text != second.text
    assert parse(first.text).spec is first.spec
    assert parse(second.text).spec is second.spec


def test_another_process_builds_the_same_plan(tmp_path):
    spec = CATALOGUE["gru_v1"]
    signature = make_call(spec, options_for(spec)["everything"]).signature
    code = f"""
from cellwright.engines import parse
found = parse({signature.text!r})
print(found.text == {signature.text!r}, found.spec.name, len(found.plan.forward.loop.nodes))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    nodes = len(signature.plan.forward.loop.nodes)
    assert done.stdout.split() == ["True", "gru_v1", str(nodes)]
