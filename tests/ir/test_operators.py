"""The table of operators: complete, consistent, and right in value and derivative."""

import itertools
import math
import re
import string

import numpy as np
import pytest
import torch

from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.ir import HIDDEN, ONE, TABLE, Matrix, Node, Vector, apply, expand_composites, leaf
from cellwright.ir.operators import EXPANSIONS

UNITS, ROWS = 5, 3
INNER = [name for name, row in TABLE.items() if row.kind != "leaf"]
POINTWISE = [name for name, row in TABLE.items() if row.kind in ("pointwise", "marker")]
COMPARISONS = ["less", "less_equal", "greater", "greater_equal", "equal"]
DIFFERENTIABLE = [
    name for name in POINTWISE if TABLE[name].derivative is not None and name != "stop_gradient"
]

# Points at which an operator is smooth; outside of them a difference quotient means nothing.
POSITIVE = {"log", "rsqrt", "sqrt"}
AWAY_FROM_ZERO = {"abs", "relu"}
APART = {"maximum", "minimum"}


def value_of(node, environment):
    """The value of a node, by the reference engine's evaluator."""
    like = torch.zeros((), dtype=torch.float64)
    evaluator = Evaluator(algebra(0), {HIDDEN: UNITS, "other": 2, ONE: 1}, like)
    (value,) = evaluator.complete([node], dict(environment))
    return value


def attributes_of(name):
    """What the operator needs beside its operands."""
    return {"expand": {"size": HIDDEN}, "clip_gradient": {"limit": 1e9}}.get(name, {})


def operands(name, sizes, seed=0):
    """Leaves for the operands of a pointwise operator, and random values for them."""
    generator = torch.Generator().manual_seed(seed)
    leaves, environment = [], {}
    for index, size in enumerate(sizes):
        boolean = name == "where" and index == 0
        node = leaf("value", f"operand{index}", Vector(size, boolean))
        shape = (ROWS, 1 if size == ONE else UNITS)
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if boolean:
            value = value > 0
        elif name in POSITIVE or (name == "div" and index == 1):
            value = value.abs() + 0.5
        elif name in AWAY_FROM_ZERO:
            value = value + value.sign() * 0.1
        leaves.append(node)
        environment[node] = value
    if name in APART:
        # Two values on different halves of a grid never come nearer than 0.05.
        for index, node in enumerate(leaves):
            environment[node] = environment[node].mul(10).round().div(10) + 0.05 * index
    return leaves, environment


# --- the rows ----------------------------------------------------------------------------------


def test_every_key_is_the_name_of_its_row():
    assert all(row.name == name for name, row in TABLE.items())


def test_the_language_has_the_operators_that_the_design_lists():
    promised = """
    add sub mul div neg square sqrt abs maximum minimum sigmoid tanh relu exp log log_sigmoid
    softplus sin cos less less_equal greater greater_equal where mean layer_norm matvec
    """
    assert set(promised.split()) <= set(TABLE)


@pytest.mark.parametrize("name", INNER)
def test_every_operator_can_be_written_and_is_described(name):
    row = TABLE[name]
    assert row.formula
    for template in (row.text, row.latex):
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        wanted = ["*"] if row.arity is None else [str(index) for index in range(row.arity)]
        assert sorted(set(fields)) == sorted(wanted), template


@pytest.mark.parametrize("name", [name for name in INNER if TABLE[name].arity])
def test_latex_shows_every_operand_in_balanced_braces(name):
    letters = "abc"[: TABLE[name].arity]
    written = TABLE[name].latex.format(*letters)
    assert written.count("{") == written.count("}")
    bare = re.sub(r"\\[a-zA-Z]+", "", written)  # without commands such as \max
    assert all(letter in bare for letter in letters)


@pytest.mark.parametrize("name", INNER)
def test_every_operator_has_a_derivative_or_a_reason_to_have_none(name):
    row = TABLE[name]
    if row.derivative is None:
        # Comparisons are flat; these two products occur only in gradient graphs; composites
        # are written out before.
        flat_or_last = {*COMPARISONS, "matvec_transposed", "outer"}
        assert name in flat_or_last or (row.kind == "composite" and name in EXPANSIONS)


def test_costs_order_what_is_computed_again():
    """Arithmetic is cheap, a division less so, a function is dear; a broadcast costs nothing."""
    cost = {name: row.cost for name, row in TABLE.items()}
    assert cost["expand"] < cost["add"] == cost["mul"] < cost["div"]
    for function in ("sigmoid", "tanh", "exp", "log", "sin", "cos", "log_sigmoid", "softplus"):
        assert cost[function] > cost["div"]


# --- values ------------------------------------------------------------------------------------

MEANING = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "square": lambda a: a * a,
    "fma": lambda a, b, c: a * b + c,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "abs": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "tanh": lambda a: (np.exp(2 * a) - 1) / (np.exp(2 * a) + 1),
    "relu": lambda a: np.where(a > 0, a, 0),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "log_sigmoid": lambda a: -np.log(1 + np.exp(-a)),
    "softplus": lambda a: np.log(1 + np.exp(a)),
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
    "where": lambda c, a, b: np.where(c, a, b),
    "expand": lambda a: np.broadcast_to(a, (ROWS, UNITS)),
    "clip_gradient": lambda a: a,
    "stop_gradient": lambda a: a,
}


def broadcasts(name):
    """Every way in which the operands may have one unit or all of them."""
    if name == "expand":
        return [(ONE,)]
    return list(itertools.product((HIDDEN, ONE), repeat=TABLE[name].arity))


CASES = [
    pytest.param(name, sizes, id="-".join((name, *sizes)))
    for name in POINTWISE
    for sizes in broadcasts(name)
]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_values_are_what_the_formula_says(name, sizes):
    leaves, environment = operands(name, sizes)
    node = apply(name, *leaves, **attributes_of(name))
    expected = MEANING[name](*(environment[each].numpy() for each in leaves))
    found = value_of(node, environment)
    assert found.shape == expected.shape
    assert node.vector.size == (HIDDEN if expected.shape[1] == UNITS else ONE)
    assert node.vector.boolean == (found.dtype == torch.bool)
    # Formulas in another order of operations: a few units in the last place apart.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("sigmoid", -800.0, 0.0),
        ("sigmoid", 800.0, 1.0),
        ("tanh", -800.0, -1.0),
        ("tanh", 800.0, 1.0),
        ("tanh", 1e-300, 1e-300),
        ("log_sigmoid", -800.0, -800.0),
        ("log_sigmoid", 800.0, 0.0),
        ("softplus", 800.0, 800.0),
        ("softplus", -800.0, 0.0),
        ("softplus", -40.0, math.exp(-40.0)),
        ("log_sigmoid", 40.0, -math.exp(-40.0)),
    ],
)
def test_functions_do_not_overflow_at_the_ends(name, argument, expected):
    given = leaf("value", "operand0", Vector(HIDDEN))
    environment = {given: torch.full((1, UNITS), argument, dtype=torch.float64)}
    found = value_of(apply(name, given), environment)
    # exp(-800) is below the smallest float64; the others are exact to rounding.
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("name", ["maximum", "minimum", "add", "mul"])
def test_nan_is_not_swallowed(name):
    a, b = (leaf("value", f"operand{index}", Vector(HIDDEN)) for index in range(2))
    nan, one = (torch.full((1, UNITS), v, dtype=torch.float64) for v in (math.nan, 1.0))
    assert value_of(apply(name, a, b), {a: nan, b: one}).isnan().all()
    assert value_of(apply(name, a, b), {a: one, b: nan}).isnan().all()


def test_reductions_are_over_units_row_by_row():
    given = leaf("value", "v", Vector(HIDDEN))
    value = torch.randn(ROWS, UNITS, dtype=torch.float64)
    total = value_of(apply("sum", given), {given: value})
    mean = value_of(apply("mean", given), {given: value})
    assert total.shape == mean.shape == (ROWS, 1)
    # Sums of five numbers in another order.
    np.testing.assert_allclose(total[:, 0], [sum(row) for row in value.tolist()], rtol=1e-14)
    np.testing.assert_allclose(mean[:, 0], [sum(row) / 5 for row in value.tolist()], rtol=1e-14)


def test_a_reduction_of_an_expanded_number_counts_every_unit():
    one = leaf("value", "v", Vector(ONE))
    environment = {one: torch.tensor([[2.0], [3.0]], dtype=torch.float64)}
    wide = apply("expand", one, size=HIDDEN)
    assert value_of(apply("sum", wide), environment).tolist() == [[10.0], [15.0]]
    # 5 * (1 / 5) is rounded once.
    found = value_of(apply("mean", wide), environment)
    np.testing.assert_allclose(found, [[2.0], [3.0]], rtol=1e-15)


def test_products_of_an_expanded_number_count_every_unit():
    one = leaf("value", "v", Vector(ONE))
    matrix = leaf("parameter", "W", Matrix("other", HIDDEN))
    turned = leaf("parameter", "R", Matrix(HIDDEN, "other"))
    weights = torch.randn(2, UNITS, dtype=torch.float64)
    given = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    environment = {one: given, matrix: weights, turned: weights.T.contiguous()}
    wide = apply("expand", one, size=HIDDEN)
    expected = given * weights.sum(1)
    for product in (apply("matvec", matrix, wide), apply("matvec_transposed", turned, wide)):
        found = value_of(product, environment)
        np.testing.assert_allclose(found, expected, rtol=1e-13)  # sums of five in another order


@pytest.mark.parametrize("blocks", [1, 2])
def test_products_are_those_of_the_matrix(blocks):
    """A block-diagonal matrix is written out as a dense one for comparison."""
    rows, columns = 4, 6
    kind = Matrix("rows", "columns", blocks)
    matrix = leaf("parameter", "W", kind)
    v, g = leaf("value", "v", Vector("columns")), leaf("value", "g", Vector("rows"))
    stored = torch.randn(rows, columns // blocks, dtype=torch.float64)
    dense = torch.block_diag(*stored.chunk(blocks))
    environment = {
        matrix: stored,
        v: torch.randn(ROWS, columns, dtype=torch.float64),
        g: torch.randn(ROWS, rows, dtype=torch.float64),
    }
    product = value_of(apply("matvec", matrix, v), environment)
    transposed = value_of(apply("matvec_transposed", matrix, g), environment)
    # Sums of at most six products in another order.
    torch.testing.assert_close(product, environment[v] @ dense.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(transposed, environment[g] @ dense, rtol=0, atol=1e-14)
    outer = algebra(0).outer(environment[g], environment[v], stored, kind)
    whole = environment[g].T @ environment[v]
    pieces = [
        whole[b * rows // blocks : (b + 1) * rows // blocks].chunk(blocks, dim=1)[b]
        for b in range(blocks)
    ]
    torch.testing.assert_close(outer, torch.cat(pieces), rtol=0, atol=1e-14)


def test_layer_norm_is_the_formula_over_all_operands_together():
    names = ("a", "b", "c")
    leaves = [leaf("value", name, Vector(HIDDEN)) for name in names]
    values = {each: torch.randn(ROWS, UNITS, dtype=torch.float64) * 3 + 1 for each in leaves}
    together = np.concatenate([values[each].numpy() for each in leaves], axis=1)
    centred = together - together.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-3)
    expected = np.split(centred / spread, 3, axis=1)
    for index in range(3):
        node = apply("layer_norm", *leaves, index=index, eps=1e-3)
        (written_out,) = expand_composites([node])
        found = value_of(written_out, values)
        # The mean of three means is the mean of all; some ten roundings.
        np.testing.assert_allclose(found, expected[index], rtol=1e-13, atol=1e-14)


# --- derivatives -------------------------------------------------------------------------------


def central_differences(node, environment, source, weight):
    """d sum(weight * node) / d source, one component at a time."""
    step = 1e-6
    result = torch.zeros_like(environment[source])
    for index in np.ndindex(*result.shape):
        shifted = []
        for sign in (1, -1):
            moved = environment[source].clone()
            moved[index] += sign * step
            value = value_of(node, {**environment, source: moved})
            shifted.append((weight * value).sum())
        result[index] = (shifted[0] - shifted[1]) / (2 * step)
    return result


def contribution(node, seed_value, environment, source):
    """The table's rule for the operand, summed where the operand was broadcast."""
    seed = leaf("cotangent", "g", node.vector)
    rule = TABLE[node.op].derivative
    found = rule(seed, node, *node.inputs, **dict(node.attributes))
    assert len(found) == len(node.inputs)
    part = found[node.inputs.index(source)]
    assert isinstance(part, Node)
    value = value_of(part, {**environment, seed: seed_value})
    if part.vector.size == ONE:
        return value.expand_as(environment[source])
    value = value.expand(ROWS, UNITS)
    return value.sum(1, keepdim=True) if environment[source].shape[1] == 1 else value


@pytest.mark.parametrize(
    ("name", "sizes"),
    [case for case in CASES if case.values[0] in DIFFERENTIABLE],
)
def test_derivatives_are_those_of_central_differences(name, sizes):
    leaves, environment = operands(name, sizes, seed=4)
    node = apply(name, *leaves, **attributes_of(name))
    width = 1 if node.vector.size == ONE else UNITS
    weight = torch.randn(ROWS, width, dtype=torch.float64)
    numbers = [each for each in leaves if not each.vector.boolean]
    assert numbers
    for source in numbers:
        expected = central_differences(node, environment, source, weight)
        found = contribution(node, weight, environment, source)
        # A quotient with step 1e-6 is off by 1e-12 (curvature) and 1e-10 (rounding) times
        # values of order 10.
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_derivatives_of_reductions(name):
    given = leaf("value", "v", Vector(HIDDEN))
    environment = {given: torch.randn(ROWS, UNITS, dtype=torch.float64)}
    node = apply(name, given)
    weight = torch.randn(ROWS, 1, dtype=torch.float64)
    seed = leaf("cotangent", "g", Vector(ONE))
    (part,) = TABLE[name].derivative(seed, node, given)
    assert part.vector.size == HIDDEN
    found = value_of(part, {**environment, seed: weight}).expand(ROWS, UNITS)
    expected = central_differences(node, environment, given, weight)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)  # as above


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_a_tie_gives_each_side_half(name):
    a, b = (leaf("value", f"operand{index}", Vector(HIDDEN)) for index in range(2))
    tied = torch.zeros(ROWS, UNITS, dtype=torch.float64)
    seed = torch.ones_like(tied)
    for source in (a, b):
        found = contribution(apply(name, a, b), seed, {a: tied, b: tied}, source)
        assert torch.equal(found, seed * 0.5)


@pytest.mark.parametrize("name", ["abs", "relu"])
def test_the_derivative_at_the_kink_is_zero(name):
    a = leaf("value", "operand0", Vector(HIDDEN))
    zero = torch.zeros(ROWS, UNITS, dtype=torch.float64)
    found = contribution(apply(name, a), torch.ones_like(zero), {a: zero}, a)
    assert torch.equal(found.expand_as(zero), zero)


def test_clip_gradient_passes_values_and_limits_gradients():
    a = leaf("value", "operand0", Vector(HIDDEN))
    value = torch.tensor([[-9.0, -0.5, 0.0, 0.5, 9.0]], dtype=torch.float64)
    node = apply("clip_gradient", a, limit=1.0)
    assert torch.equal(value_of(node, {a: value}), value)
    seed = leaf("cotangent", "g", Vector(HIDDEN))
    (part,) = TABLE["clip_gradient"].derivative(seed, node, a, limit=1.0)
    found = value_of(part, {seed: value})
    assert found.tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]]


def test_stop_gradient_passes_values_and_no_gradient():
    a = leaf("value", "operand0", Vector(HIDDEN))
    value = torch.tensor([[-9.0, 0.5]], dtype=torch.float64, requires_grad=True)
    node = apply("stop_gradient", a)
    result = value_of(node, {a: value})
    assert torch.equal(result, value)
    assert not result.requires_grad
    assert TABLE["stop_gradient"].derivative(leaf("cotangent", "g", a.vector), node, a) == (None,)
