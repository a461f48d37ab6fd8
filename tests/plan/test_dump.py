"""A plan as text: complete, short enough to read, and always the same."""

import os
import re
import subprocess
import sys

import pytest
from lang.programs import cell_of
from plan.cases import everything

import cellwright as cw
from cellwright.ir import HIDDEN, Matrix, Vector, apply, leaf
from cellwright.lang.printing import expression
from cellwright.plan import StepOptions, build
from cellwright.plan.dump import dump

ELMAN = """\
forward of elman
  for all steps at once
    input.0 = W @ x[t] + b
  stage 0
    t = U @ h[t-1]
    h[t] = tanh(input.0 + t)
  results
    output = h[t]
  saved for the backward pass: nothing

backward of elman
  stage 0
    d input.0 = (d next.h + d output) * (1 - next.h * next.h)  (stored)
  stage 1
    d h[t-1] = U.T @ d input.0
  summed over steps
    d U += outer(d input.0, h[t-1])
  after the loop, over all steps at once
    d x = W.T @ d input.0
    d b += d input.0
    d W += outer(d input.0, x[t])
"""


@pytest.mark.parametrize("name", cw.cells.names())
@pytest.mark.parametrize("which", ["plain", "everything"])
def test_dumps_can_be_read(name, which):
    spec = cw.cells.get(name)
    options = StepOptions() if which == "plain" else everything(spec)
    plan, text = build(spec, options), dump(spec, options)
    lines = text.splitlines()
    assert lines[0] == f"forward of {name}"
    assert f"backward of {name}" in lines
    assert "Node(" not in text
    assert "<" not in text.replace(" < ", "").replace(" <= ", "")
    # A line that wraps twice in a terminal of 80 columns is no longer read.
    assert which == "everything" or max(map(len, lines)) <= 160
    for parameter in plan.parameters:
        assert parameter.name in text, f"{parameter.name} is nowhere"
    for each in (*plan.forward.inputs, *plan.forward.once, *plan.forward.saved):
        assert any(line.strip().startswith(f"{each} = ") for line in lines), each
    for state in spec.states:
        assert any(line.strip().startswith(f"{state.name}[t] = ") for line in lines)
    forward, backward = text.split("backward of")
    assert forward.count("  stage ") == len(plan.forward.loop.stages)
    assert backward.count("  stage ") == len(plan.backward.loop.stages)


@pytest.mark.parametrize("name", cw.cells.names())
def test_a_name_in_a_dump_has_one_meaning(name):
    """Each pass defines a name once, and reads only names that are defined."""
    for part in dump(cw.cells.get(name), StepOptions(trace=True)).split("\n\n"):
        defined = [line.strip().split(" = ")[0] for line in part.splitlines() if " = " in line]
        own = [each for each in defined if each[0] in "ts" and each[1:].isdigit()]
        assert len(own) == len(set(own)), [each for each in own if own.count(each) > 1]


def test_the_dump_of_the_smallest_cell_is_as_one_would_write_it():
    assert re.sub(r"\bt\d+", "t", dump(cw.cells.get("elman"))) == ELMAN


def test_brackets_follow_a_transposed_matrix():
    matrix = leaf("parameter", "U", Matrix(HIDDEN, HIDDEN))
    g, h = (leaf("state", name, Vector(HIDDEN)) for name in "gh")

    def written(root):
        return expression(root, {}, lambda each: each.attribute("name"), "text")

    assert written(apply("matvec_transposed", matrix, g * h)) == "U.T @ (g * h)"
    assert written(apply("matvec_transposed", matrix, g + h)) == "U.T @ (g + h)"
    assert written(apply("matvec_transposed", matrix, g) * h) == "U.T @ g * h"
    assert written(h * apply("matvec_transposed", matrix, g)) == "h * (U.T @ g)"


def test_dumps_are_the_same_in_every_process(tmp_path):
    code = """
import hashlib, cellwright as cw
from cellwright.plan.dump import dump
text = "".join(dump(cw.cells.get(name)) for name in cw.cells.names())
print(hashlib.sha256(text.encode()).hexdigest())
"""
    found = set()
    for seed in ("1", "2"):
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
            cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_a_dump_of_every_operator():
    program = tuple((op, 3, 1) for op in ("less", "center", "layer_norm_two", "of_parameters"))
    spec = cell_of(program)
    assert dump(spec, everything(spec)).count("\n") > 50
