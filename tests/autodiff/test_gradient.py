"""Gradients from graph to graph agree with torch's autograd on the same mathematics."""

import torch
from hypothesis import given, settings
from lang.programs import TENSORS, cell_of, ends, groups_of, perform, programs, weights_of

import cellwright as cw
from cellwright.autodiff import gradient
from cellwright.engines.reference.algebra import algebra
from cellwright.engines.reference.evaluate import Evaluator
from cellwright.ir import (
    HIDDEN,
    ONE,
    Matrix,
    Vector,
    apply,
    expand_composites,
    leaf,
    topological,
    verify,
)
from cellwright.lang import next_state

B, SIZES = 3, {"input": 2, "hidden": 5, "one": 1}
LEAVES = ("input", "state", "parameter", "cotangent")


def seeds_for(results):
    """A cotangent for each distinct result."""
    return {each: leaf("cotangent", f"g{n}", each.vector) for n, each in enumerate(results)}


def evaluate(nodes, environment):
    """Values of vectors, (B, units) each."""
    evaluator = Evaluator(algebra(0), SIZES, torch.zeros((), dtype=torch.float64))
    values = evaluator.complete(nodes, dict(environment))
    return [v.expand(B, SIZES[n.size]) for n, v in zip(nodes, values, strict=True)]


def summands(node):
    """The outer products that a matrix's gradient is the sum of."""
    if node.op == "add":
        return [each for source in node.inputs for each in summands(source)]
    assert node.op == "outer", node
    return [node]


def gradient_of_weight(node, environment):
    """The gradient of a parameter: outer products, or rows, summed over the batch."""
    if isinstance(node.type, Matrix):
        total = 0
        for each in summands(node):
            delta, operand = evaluate(list(each.inputs), environment)
            total = total + delta.T @ operand
        return total
    return evaluate([node], environment)[0].sum(0)


@settings(max_examples=80)
@given(programs())
def test_gradients_of_random_cells_are_torchs(program):
    spec = cell_of(program)
    results = list(dict.fromkeys(expand_composites([*spec.next.values(), *spec.watch.values()])))
    leaves = {
        (each.op, each.attribute("name")): each
        for each in topological(results)
        if each.op in LEAVES
    }
    seeds = seeds_for(results)
    found = gradient(seeds, list(leaves.values()))

    # The same mathematics on tensors, differentiated by torch.
    generator = torch.Generator().manual_seed(1)
    weights = weights_of(spec, SIZES)
    values = {("parameter", name): value for name, value in weights.items()}
    values["input", "x"] = torch.randn(B, 2, generator=generator, dtype=torch.float64)
    for name in ("h", "c"):
        values["state", name] = torch.randn(B, 5, generator=generator, dtype=torch.float64)
    for each in values.values():
        each.requires_grad_()
    x, h, c = values["input", "x"], values["state", "h"], values["state", "c"]
    computed = perform(program, TENSORS, x, h, c, **groups_of(spec, weights))
    by_name = dict(zip(("h", "c"), ends(TENSORS, computed), strict=True))
    by_name |= {f"v{index}": value for index, value in enumerate(computed) if index > 1}
    # One cotangent for a result, however many names it has.
    names = [*spec.next, *spec.watch]
    written_out = expand_composites([*spec.next.values(), *spec.watch.values()])
    given_seeds, outputs, arriving = {}, [], []
    for name, node in zip(names, written_out, strict=True):
        seed = seeds[node]
        if seed not in given_seeds:
            shape = (B, SIZES[node.size])
            given_seeds[seed] = torch.randn(shape, generator=generator, dtype=torch.float64)
            outputs.append(by_name[name].expand(shape))
            arriving.append(given_seeds[seed])
    wanted = list(values)
    expected = torch.autograd.grad(
        outputs, [values[key] for key in wanted], arriving, allow_unused=True
    )

    environment = given_seeds | {node: values[key].detach() for key, node in leaves.items()}
    verify(found.values(), leaves=LEAVES)
    for key, reference in zip(wanted, expected, strict=True):
        node = found.get(leaves.get(key))
        if node is None:
            assert reference is None or not reference.any(), key
            continue
        assert node.type == leaves[key].type
        if key[0] == "parameter":
            mine = gradient_of_weight(node, environment)
        else:
            (mine,) = evaluate([node], environment)
        reference = torch.zeros_like(mine) if reference is None else reference
        # Up to ten functions deep, with slopes up to some tens: 1e-16 times 1e4 at most.
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-11, msg=str(key))


# --- what is asked for, and what is not --------------------------------------------------------

H = leaf("state", "h", Vector(HIDDEN))
C = leaf("state", "c", Vector(HIDDEN))
G = leaf("cotangent", "g", Vector(HIDDEN))


def test_what_a_result_does_not_depend_on_is_left_out():
    assert set(gradient({apply("tanh", H): G}, [H, C])) == {H}
    assert gradient({}, [H]) == {}


def test_a_result_that_is_the_leaf_itself():
    assert gradient({H: G}, [H]) == {H: G}


def test_a_result_may_lie_on_the_way_to_another():
    middle = apply("tanh", H)
    end = middle * 3
    other = leaf("cotangent", "k", Vector(HIDDEN))
    found = gradient({end: G, middle: other}, [middle])
    assert found == {middle: other + G * 3.0} or found == {middle: G * 3.0 + other}


def test_a_derivative_stops_at_what_is_asked_for():
    middle = apply("tanh", H)
    found = gradient({middle * C: G}, [middle, C])
    assert found == {middle: G * C, C: G * middle}


def test_no_gradient_flows_into_a_condition():
    chosen = apply("where", apply("greater", H, C), C * 2, C * 3)
    assert set(gradient({chosen: G}, [H, C])) == {C}


def test_a_number_that_was_broadcast_is_summed():
    one = leaf("value", "m", Vector(ONE))
    (found,) = gradient({H * one: G}, [one]).values()
    assert found is apply("sum", G * H)


def test_a_matrix_used_twice_has_two_outer_products():
    matrix = leaf("parameter", "U", Matrix(HIDDEN, HIDDEN))
    result = apply("matvec", matrix, apply("tanh", apply("matvec", matrix, H)))
    (found,) = gradient({result: G}, [matrix]).values()
    assert found.op == "add"
    assert [each.op for each in found.inputs] == ["outer", "outer"]


def test_a_limit_acts_on_all_that_flows_through_it():
    clipped = apply("clip_gradient", H, limit=0.5)
    (found,) = gradient({clipped * 2 + clipped: G}, [H]).values()
    evaluator = Evaluator(algebra(0), SIZES, torch.zeros((), dtype=torch.float64))
    given_seed = torch.tensor([[-1.0, 0.125, 1.0]], dtype=torch.float64)
    (value,) = evaluator.complete([found], {G: given_seed})
    # 3 / 8 passes, 3 is limited: it is the sum that is, not each path by itself.
    assert value.tolist() == [[-0.5, 0.375, 0.5]]


def test_deep_graphs_are_no_matter_of_recursion():
    root = H
    for _ in range(3000):
        root = apply("tanh", root)
    assert set(gradient({root: G}, [H])) == {H}


def test_every_cell_of_the_catalogue_has_verified_gradients():
    for name in cw.cells.names():
        spec = cw.cells.get(name)
        results = expand_composites([*spec.next.values(), *spec.watch.values()])
        leaves = [each for each in topological(results) if each.op in LEAVES]
        found = gradient(seeds_for(list(dict.fromkeys(results))), leaves)
        verify(found.values(), leaves=LEAVES)
        assert set(found) == set(leaves), name


def test_language_and_differentiation_meet():
    """The derivative of a cell, written down as one would on paper."""

    @cw.cell(state="h")
    def mine(x, h, W, a):
        return next_state(h=cw.tanh(W @ x + a * h))

    (value,) = mine.next.values()
    seed = leaf("cotangent", "g", value.vector)
    leaves = {n.attribute("name"): n for n in topological([value]) if n.op in LEAVES}
    state, parameter = leaves["h"], leaves["a"]
    one_minus = 1.0 - value * value
    assert gradient({value: seed}, [state]) == {state: seed * one_minus * parameter}
