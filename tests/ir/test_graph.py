"""Nodes: one object for each distinct expression; the passes that walk and rewrite graphs."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwright.ir import (
    HIDDEN,
    ONE,
    Matrix,
    Vector,
    apply,
    as_node,
    constant,
    expand_composites,
    leaf,
    node,
    rebuild,
    substitute,
    topological,
)


def state(name, size=HIDDEN):
    return leaf("state", name, Vector(size))


def product():
    h = state("h")
    return apply("matvec", leaf("parameter", "U", Matrix(HIDDEN, HIDDEN)), h)


# --- one object for each expression ------------------------------------------------------------


def test_expressions_built_alike_are_one_object():
    assert apply("tanh", product()) is apply("tanh", product())
    assert state("h") * 2 + 1 is state("h") * 2.0 + 1.0


@pytest.mark.parametrize(
    "other",
    [
        lambda h: apply("tanh", h) + 1,
        lambda h: 1 + apply("tanh", h),
        lambda h: apply("tanh", h) - 1,
        lambda h: apply("tanh", state("h", "other")),
        lambda h: apply("tanh", state("c")),
        lambda h: apply("tanh", leaf("value", "h", Vector(HIDDEN))),
        lambda h: apply("tanh", leaf("state", "h", Vector(HIDDEN, boolean=False), extra=1)),
    ],
)
def test_expressions_built_otherwise_are_not(other):
    h = state("h")
    found = [apply("tanh", h), 1 + apply("tanh", h), apply("tanh", h) - 1, apply("tanh", h) + 1]
    assert sum(other(h) is each for each in found) <= 1
    assert other(h) is not apply("tanh", h)


def test_constants_are_told_apart_by_sign_of_zero():
    assert constant(0.0) is not constant(-0.0)
    assert constant(1) is constant(1.0)
    assert constant(float("nan")) is constant(float("nan"))


def test_attributes_in_any_order_make_one_object():
    h = state("h")
    first = node("layer_norm", (h,), {"index": 0, "eps": 1e-5}, h.type)
    assert first is node("layer_norm", (h,), {"eps": 1e-5, "index": 0}, h.type)
    assert first.attribute("eps") == 1e-5
    with pytest.raises(KeyError, match="gain"):
        first.attribute("gain")


def test_threads_that_build_the_same_get_the_same():
    barrier, found = threading.Barrier(8), []

    def build():
        barrier.wait()
        current = state("h")
        for index in range(200):
            current = apply("tanh", current + index)
        found.append(current)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 8
    assert len({id(each) for each in found}) == 1


def test_nothing_is_kept_that_nobody_uses():
    current = state("a name that no other test uses") * 3
    watcher = weakref.ref(current)
    del current
    gc.collect()
    assert watcher() is None


def test_copies_are_the_same_object():
    root = apply("tanh", product() + 1)
    assert copy.copy(root) is root
    assert copy.deepcopy([root])[0] is root
    assert pickle.loads(pickle.dumps(root)) is root


# --- arithmetic --------------------------------------------------------------------------------


def test_python_arithmetic_builds_the_operators():
    h, c = state("h"), state("c")
    for found, op, inputs in (
        (h + c, "add", (h, c)),
        (1 + h, "add", (constant(1), h)),
        (h - c, "sub", (h, c)),
        (1 - h, "sub", (constant(1), h)),
        (h * c, "mul", (h, c)),
        (2 * h, "mul", (constant(2), h)),
        (h / c, "div", (h, c)),
        (-h, "neg", (h,)),
    ):
        assert (found.op, found.inputs) == (op, inputs)
    assert as_node(h) is h
    assert as_node(2).type == Vector(ONE)


# --- walking and rewriting ---------------------------------------------------------------------


@st.composite
def graphs(draw):
    """Random graphs of sums and products with much sharing; (nodes in any order, roots)."""
    nodes = [state("h"), state("c"), constant(2.0)]
    for _ in range(draw(st.integers(1, 25))):
        index = st.integers(0, len(nodes) - 1)
        a, b = nodes[draw(index)], nodes[draw(index)]
        op = draw(st.sampled_from(["add", "mul", "sub", "tanh"]))
        nodes.append(apply(op, a) if op == "tanh" else apply(op, a, b))
    roots = draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=4))
    return roots


@given(graphs())
def test_topological_has_every_node_once_inputs_first(roots):
    order = topological(roots)
    place = {each: index for index, each in enumerate(order)}
    assert len(place) == len(order)
    assert set(roots) <= set(order)
    for each in order:
        assert all(place[source] < place[each] for source in each.inputs)
    # Nothing beyond what the roots are computed from.
    reached, stack = set(), list(roots)
    while stack:
        each = stack.pop()
        if each not in reached:
            reached.add(each)
            stack.extend(each.inputs)
    assert reached == set(order)


def _plainly_substituted(root, replacement):
    if root in replacement:
        return replacement[root]
    if not root.inputs:
        return root
    return rebuild(root, tuple(_plainly_substituted(each, replacement) for each in root.inputs))


@given(graphs())
def test_substitute_exchanges_every_occurrence(roots):
    h, c = state("h"), state("c")
    replacement = {h: apply("tanh", h) * c, c: state("n")}
    found = substitute(roots, replacement)
    # The replacement itself is left alone: h may occur in what stands for h.
    assert found == [_plainly_substituted(root, replacement) for root in roots]
    assert substitute(roots, {}) == roots
    assert substitute(roots, {state("absent"): c}) == roots


def test_long_chains_are_no_matter_of_recursion():
    root = h = state("h")
    for _ in range(5000):
        root = apply("tanh", root) + h
    assert len(topological([root])) == 10001
    (other,) = substitute([root], {h: state("c")})
    assert state("h") not in topological([other])
    assert state("c") in topological([other])


def test_composites_inside_composites_are_written_out():
    h = state("h")
    inner = apply("layer_norm", h, index=0, eps=1e-5)
    outer = apply("layer_norm", inner * h, h, index=1, eps=1e-5)
    found = expand_composites([outer, h])
    assert all(each.op != "layer_norm" for each in topological(found))
    assert found[0].type == outer.type
    assert found[1] is h
