"""The verifier lets good graphs pass and catches each kind of broken one."""

import pytest

from cellwright.ir import (
    HIDDEN,
    INPUT,
    ONE,
    GraphError,
    GraphTypeError,
    Matrix,
    Vector,
    apply,
    constant,
    leaf,
    node,
    verify,
)

H = leaf("state", "h", Vector(HIDDEN))
P = leaf("state", "p", Vector("projection"))
U = leaf("parameter", "U", Matrix(HIDDEN, HIDDEN))
COMPARED = apply("less", H, constant(0))
NORMALISED = apply("layer_norm", H, index=0, eps=1e-5)
LEAVES = ("state", "parameter")


def test_good_graphs_pass():
    good = apply("tanh", apply("matvec", U, H) * apply("mean", H) + 1)
    chosen = apply("where", COMPARED, good, H)
    verify(
        [good, chosen, node("reciprocal_size", (), {"size": HIDDEN}, Vector(ONE))], leaves=LEAVES
    )
    verify([NORMALISED], leaves=LEAVES, composites=True)


BROKEN = {
    "an operator that the table lacks": (node("cosine", (H,), {}, H.type), "no such operator"),
    "too few operands": (node("add", (H,), {}, H.type), "2 operands expected"),
    "too many operands": (node("tanh", (H, H), {}, H.type), "1 operands expected"),
    "a composite that is left": (apply("tanh", NORMALISED), "expanded"),
    "a leaf of another kind": (apply("tanh", leaf("cotangent", "h", H.type)), "may only read"),
    "a type that the operands do not make": (node("tanh", (H,), {}, P.type), "make"),
    "a number taken for a comparison": (node("tanh", (H,), {}, Vector(HIDDEN, True)), "make"),
    "vectors of unlike sizes": (node("add", (H, P), {}, H.type), "unlike sizes"),
    "a comparison taken for a number": (node("add", (H, COMPARED), {}, H.type), "comparison"),
    "a number as the condition": (node("where", (H, H, H), {}, H.type), "comparison"),
    "a matrix beside a vector": (node("add", (U, H), {}, H.type), "matrix"),
    "a product with the wrong vector": (node("matvec", (U, P), {}, H.type), "product"),
    "a product without a matrix": (node("matvec", (H, H), {}, H.type), "product"),
    "a transposed product with the wrong vector": (
        node("matvec_transposed", (U, P), {}, H.type),
        "product",
    ),
    "an outer product of a matrix": (node("outer", (U, H), {"blocks": 1}, U.type), "outer"),
    "an outer product without its blocks": (node("outer", (H, H), {}, U.type), "blocks"),
    "a vector that is expanded": (node("expand", (H,), {"size": HIDDEN}, H.type), "expanded"),
    "matrices of unlike shapes that are added": (
        node("add", (U, leaf("parameter", "W", Matrix(HIDDEN, INPUT))), {}, U.type),
        "unlike shapes",
    ),
    "a function of a matrix": (node("tanh", (U,), {}, U.type), "matrix"),
    "a product of matrices unit by unit": (node("mul", (U, U), {}, U.type), "matrix"),
    "a sum over the units of a matrix": (node("sum", (U,), {}, Vector(ONE)), "matrix"),
    "a part that layer_norm does not have": (
        node("layer_norm", (H,), {"index": 1, "eps": 1e-5}, H.type),
        "index",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_caught(case):
    root, message = BROKEN[case]
    composites = case.startswith("a part")
    with pytest.raises(GraphError, match=message):
        verify([root], leaves=LEAVES, composites=composites)
    # Also where the fault lies deep inside.
    if isinstance(root.type, Vector) and not root.vector.boolean:
        deep = node("neg", (node("neg", (root,), {}, root.type),), {}, root.type)
        with pytest.raises(GraphError, match=message):
            verify([H, deep], leaves=LEAVES, composites=composites)


def test_one_name_has_one_type():
    other = leaf("state", "h", Vector("projection"))
    with pytest.raises(GraphError, match="also of type"):
        verify([H, other], leaves=LEAVES)
    # A parameter may be called as a state is: they are of unlike kinds.
    verify([H, leaf("parameter", "h", Vector("projection"))], leaves=LEAVES)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("add", (H, P), {}),
        ("add", (H, COMPARED), {}),
        ("add", (U, H), {}),
        ("where", (H, H, H), {}),
        ("matvec", (U, P), {}),
        ("sum", (U,), {}),
        ("expand", (H,), {"size": HIDDEN}),
    ],
)
def test_apply_refuses_what_the_verifier_would(op, inputs, attributes):
    with pytest.raises(GraphTypeError):
        apply(op, *inputs, **attributes)


@pytest.mark.parametrize("op", ["input", "state", "parameter", "stream", "cotangent", "value"])
def test_leaves_are_not_applied(op):
    with pytest.raises(GraphTypeError, match="leaf"):
        apply(op)
