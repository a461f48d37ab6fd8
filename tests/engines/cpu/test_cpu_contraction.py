"""The plan in fewer operations: which sums become one with a product, and which do not."""

from __future__ import annotations

import cellwright as cw
from cellwright.engines.cpu.contraction import contract, contracted
from cellwright.ir import HIDDEN, ONE, TABLE, Matrix, Vector, apply, leaf, topological
from cellwright.plan import build

a, b, c = (leaf("state", name, Vector(HIDDEN)) for name in "abc")
r, s = (leaf("stream", name, Vector(ONE), per_step=True) for name in "rs")
W = leaf("parameter", "W", Matrix(HIDDEN, HIDDEN))


def one(root):
    return contract([root])[0]


def test_a_product_and_a_sum_are_one_operation():
    assert one(a * b + c) is apply("fma", a, b, c)
    assert one(c + a * b) is apply("fma", a, b, c)
    assert one(c - a * b) is apply("fma", -a, b, c)
    assert one(a * b - c) is apply("fma", a, b, -c)
    assert one(apply("square", a) + c) is apply("fma", a, a, c)
    assert one(a * b + b * c) is apply("fma", b, c, a * b)


def test_sums_with_matrix_products_stay_chains():
    product = apply("matvec", W, a)
    for root in (product + a * b, (a * b + c) + product, (product + c) + a * b):
        assert one(root) is root
    assert one(apply("tanh", product) + a * b).op == "fma"


def test_of_two_products_the_later_one():
    total = apply("expand", apply("sum", a), size=HIDDEN)
    assert one(total * b + a * c) is apply("fma", total, b, a * c)


def test_numbers_of_a_row_meet_first():
    assert one((a * r) * s) is apply("expand", r * s, size=HIDDEN) * a
    assert one((a * b) * s) is (a * b) * s


def test_programs_of_a_cell_are_told_the_same():
    plan = contracted(build(cw.cells.get("layer_norm_lstm")))
    used = {each.op for each in topological([*plan.forward.next.values()])}
    assert "fma" in used
    assert all(TABLE[op].kind != "composite" for op in used)
