"""The one table of operators: what each means, its type, its derivative, how it is written.

Everything else in the project reads this table: the tracer, the differentiation, the
planner, the engines and the printers. An operator that is added here and given an
evaluation in each engine works everywhere; a marker needs none but the reference engine's.

A derivative rule receives the cotangent ``g`` of the result, the result ``y`` and the
operands, and returns one cotangent for each operand (``None`` where there is none).
Broadcasting is not its concern: :mod:`cellwright.autodiff` sums what was broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cellwright.ir.node import Node, apply, as_node, node
from cellwright.ir.types import ONE, Matrix, Type, Vector

TypeRule = Callable[[Sequence[Type], Mapping[str, Any]], Type]
Derivative = Callable[..., tuple[Node | None, ...]]
Kind = Literal["leaf", "pointwise", "reduction", "product", "marker", "composite"]


class GraphTypeError(TypeError):
    """An operator was applied to operands that it has no meaning for."""


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        name: the key.
        kind: how a planner treats it. ``pointwise`` needs one unit of each operand,
            ``reduction`` all units of a row, ``product`` a matrix; ``marker`` is its operand
            with a derivative of its own, and left out after differentiation; ``composite`` is
            expanded into the others before differentiation.
        arity: number of operands, ``None`` for any number.
        result: type of the result from the types of the operands.
        derivative: the rule, ``None`` where the result has no derivative.
        formula: the numerically stable evaluation, in words of a formula.
        text, latex: templates; ``{0}`` is the first operand.
        precedence: of the templates: 1 comparison, 2 sum, 3 product, 4 prefix, 5 call or atom.
        cost: relative cost of evaluating one unit, for the choice of what to recompute.
    """

    name: str
    kind: Kind
    arity: int | None
    result: TypeRule
    derivative: Derivative | None = None
    formula: str = ""
    text: str = ""
    latex: str = ""
    precedence: int = 5
    cost: int = 1


def _common(types: Sequence[Type], attributes: Mapping[str, Any]) -> Vector:
    """Vectors of one size, or ``ONE`` beside it."""
    sizes = set()
    for each in types:
        if isinstance(each, Matrix):
            raise GraphTypeError(f"a matrix {each} where a vector is expected")
        if each.boolean:
            raise GraphTypeError("a comparison where a number is expected")
        sizes.add(each.size)
    wide = sorted(sizes - {ONE})
    if len(wide) > 1:
        raise GraphTypeError("vectors of unlike sizes: " + ", ".join(wide))
    return Vector(wide[0] if wide else ONE)


def _added(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    """Vectors, or matrices that are alike: a matrix's gradient is a sum."""
    if not all(isinstance(each, Matrix) for each in types):
        return _common(types, attributes)
    if len(set(types)) > 1:
        raise GraphTypeError("matrices of unlike shapes: " + ", ".join(map(str, types)))
    return types[0]


def _comparison(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    return Vector(_common(types, attributes).size, boolean=True)


def _where(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    condition = types[0]
    if not isinstance(condition, Vector) or not condition.boolean:
        raise GraphTypeError("the first operand of where has to be a comparison")
    return _common((Vector(condition.size), *types[1:]), attributes)


def _reduced(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    _common(types, attributes)
    return Vector(ONE)


def _product(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    matrix, vector = types
    if not isinstance(matrix, Matrix) or vector != Vector(matrix.columns):
        raise GraphTypeError(f"a product of {matrix} with {vector}")
    return Vector(matrix.rows)


def _transposed_product(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    matrix, vector = types
    if not isinstance(matrix, Matrix) or vector != Vector(matrix.rows):
        raise GraphTypeError(f"a transposed product of {matrix} with {vector}")
    return Vector(matrix.columns)


def _outer(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    rows, columns = types
    if not isinstance(rows, Vector) or not isinstance(columns, Vector):
        raise GraphTypeError("an outer product of something else than two vectors")
    if rows.boolean or columns.boolean:
        raise GraphTypeError("a comparison where a number is expected")
    return Matrix(rows.size, columns.size, attributes["blocks"])


def _given(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    raise GraphTypeError("a leaf is made by ir.node.leaf, with its type")


def _expanded(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    if types[0] != Vector(ONE):
        raise GraphTypeError(f"only a single number a row can be expanded, not {types[0]}")
    return Vector(attributes["size"])


def where(condition: Node, chosen: Node | float, otherwise: Node | float) -> Node:
    """``chosen`` where the condition holds, ``otherwise`` elsewhere."""
    return apply("where", condition, as_node(chosen), as_node(otherwise))


def _extremum_rule(better: str) -> Derivative:
    def rule(g: Node, y: Node, a: Node, b: Node) -> tuple[Node | None, ...]:
        tie = where(apply("equal", a, b), g * 0.5, 0.0)  # torch's convention: half to each
        return where(apply(better, a, b), g, tie), where(apply(better, b, a), g, tie)

    return rule


def _abs_rule(g: Node, y: Node, a: Node) -> tuple[Node | None, ...]:
    zero = as_node(0.0)
    falling = where(apply("less", a, zero), -g, 0.0)
    return (where(apply("greater", a, zero), g, falling),)


def _clip_rule(g: Node, y: Node, a: Node, *, limit: float) -> tuple[Node | None, ...]:
    return (apply("maximum", apply("minimum", g, as_node(limit)), as_node(-limit)),)


def _matvec_rule(g: Node, y: Node, matrix: Node, v: Node, **how: Any) -> tuple[Node | None, ...]:
    outer = apply("outer", g, v, blocks=matrix.matrix.blocks, **how)
    return outer, apply("matvec_transposed", matrix, g, **how)


def layer_norm_expansion(original: Node) -> Node:
    """Normalised operand number ``index``, with statistics over all operands together.

    Operands are added up before the mean over units, and multiplied by one number a row: a
    division for each would take longer than all the rest.
    """
    operands, share = original.inputs, 1.0 / len(original.inputs)
    index: int = original.attribute("index")
    eps: float = original.attribute("eps")

    def average(values: Sequence[Node]) -> Node:
        total = values[0]
        for each in values[1:]:
            total = total + each
        mean = apply("mean", total)
        return mean if len(values) == 1 else mean * share

    center = average(operands)
    variance = average([apply("square", each - center) for each in operands])
    return (operands[index] - center) * apply("rsqrt", variance + eps)


def _layer_norm_type(types: Sequence[Type], attributes: Mapping[str, Any]) -> Type:
    if not 0 <= attributes["index"] < len(types):
        raise GraphTypeError("layer_norm's index is beyond its operands")
    return _common(types, attributes)


def _leaf(name: str) -> Operator:
    return Operator(name, "leaf", 0, _given, cost=0)


def _comparison_row(name: str, text: str, latex: str) -> Operator:
    text_form, latex_form = f"{{0}} {text} {{1}}", f"{{0}} {latex} {{1}}"
    return Operator(name, "pointwise", 2, _comparison, None, text, text_form, latex_form, 1)


def _function(
    name: str, derivative: Derivative, formula: str, latex: str = "", cost: int = 12, arity: int = 1
) -> Operator:
    operands = ", ".join(f"{{{index}}}" for index in range(arity))
    latex = latex or rf"\operatorname{{{{{name}}}}}"
    template = latex if "{0}" in latex else rf"{latex}({operands})"
    call = f"{name}({operands})"
    return Operator(
        name, "pointwise", arity, _common, derivative, formula, call, template, 5, cost
    )  # fmt: skip


_ROWS = (
    # Values from outside the graph.
    _leaf("input"),  # x at this step
    _leaf("state"),  # a state before this step
    _leaf("parameter"),
    _leaf("stream"),  # masks: one row a sequence; attribute per_step tells if they change with time
    _leaf("cotangent"),  # gradient of the loss with respect to a result
    _leaf("value"),  # computed by an earlier part of the plan
    Operator("constant", "leaf", 0, _given, cost=0),
    Operator(
        "reciprocal_size", "leaf", 0, lambda types, attributes: Vector(ONE), cost=0
    ),  # 1 / number of units
    # Arithmetic.
    Operator("add", "pointwise", 2, _added, lambda g, y, a, b: (g, g), "a + b",
             "{0} + {1}", "{0} + {1}", 2),
    Operator("sub", "pointwise", 2, _common, lambda g, y, a, b: (g, -g), "a - b",
             "{0} - {1}", "{0} - {1}", 2),
    Operator("mul", "pointwise", 2, _common, lambda g, y, a, b: (g * b, g * a), "a * b",
             "{0} * {1}", r"{0} \odot {1}", 3),
    Operator("div", "pointwise", 2, _common, lambda g, y, a, b: (g / b, -(g * y / b)), "a / b",
             "{0} / {1}", r"{0} \oslash {1}", 3, 4),
    Operator("neg", "pointwise", 1, _common, lambda g, y, a: (-g,), "-a", "-{0}", "-{0}", 4),
    Operator("fma", "pointwise", 3, _common, lambda g, y, a, b, c: (g * b, g * a, g),
             "a * b + c, on a processor rounded once", "{0} * {1} + {2}",
             r"{0} \odot {1} + {2}", 2),
    _function("square", lambda g, y, a: (g * a * 2.0,), "a * a", cost=1),
    _function("sqrt", lambda g, y, a: (g * 0.5 / y,), "square root of a", r"\sqrt{{{0}}}", cost=6),
    _function("rsqrt", lambda g, y, a: (g * (y * y * y) * -0.5,), "1 / square root of a",
              r"1 / \sqrt{{{0}}}", cost=10),
    _function("abs", _abs_rule, "|a|, derivative 0 at 0", r"\lvert {0} \rvert", cost=1),
    _function("maximum", _extremum_rule("greater"), "the greater, NaN if either is",
              r"\max", cost=1, arity=2),
    _function("minimum", _extremum_rule("less"), "the lesser, NaN if either is",
              r"\min", cost=1, arity=2),
    # Functions.
    _function("sigmoid", lambda g, y, a: (g * (y * (1.0 - y)),),
              "1 / (1 + exp(-a)), by exp(a) / (1 + exp(a)) where a < 0", r"\sigma"),
    _function("tanh", lambda g, y, a: (g * (1.0 - y * y),),
              "1 - 2 / (exp(2a) + 1), a polynomial near 0", r"\tanh"),
    _function("relu", lambda g, y, a: (where(apply("greater", y, as_node(0.0)), g, 0.0),),
              "max(a, 0), derivative 0 at 0", cost=1),
    _function("exp", lambda g, y, a: (g * y,), "e to the a", r"\exp"),
    _function("log", lambda g, y, a: (g / a,), "natural logarithm of a", r"\log"),
    _function("sin", lambda g, y, a: (g * apply("cos", a),),
              "sine of the distance to the nearest multiple of pi / 2, or its cosine", r"\sin",
              cost=20),
    _function("cos", lambda g, y, a: (-(g * apply("sin", a)),),
              "as for sin, a quarter of a turn on", r"\cos", cost=20),
    _function("log_sigmoid", lambda g, y, a: (g * apply("sigmoid", -a),),
              "min(a, 0) - log1p(exp(-|a|))", r"\log\sigma", cost=24),
    _function("softplus", lambda g, y, a: (g * apply("sigmoid", a),),
              "max(a, 0) + log1p(exp(-|a|))", cost=24),
    # Choice.
    _comparison_row("less", "<", "<"),
    _comparison_row("less_equal", "<=", r"\le"),
    _comparison_row("greater", ">", ">"),
    _comparison_row("greater_equal", ">=", r"\ge"),
    _comparison_row("equal", "==", "="),
    Operator("where", "pointwise", 3, _where,
             lambda g, y, c, a, b: (None, where(c, g, 0.0), where(c, 0.0, g)),
             "a where c holds, else b", "where({0}, {1}, {2})",
             r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}"),
    # Over the units of a row.
    Operator("sum", "reduction", 1, _reduced,
             lambda g, y, a: (apply("expand", g, size=a.size) if a.size != ONE else g,),
             "sum over units", "sum({0})", r"\operatorname{{sum}}({0})"),
    Operator("mean", "reduction", 1, _reduced,
             lambda g, y, a: (apply("expand", g * reciprocal_size(a.size), size=a.size),),
             "sum over units * (1 / number of units)", "mean({0})",
             r"\operatorname{{mean}}({0})"),
    Operator("expand", "pointwise", 1, _expanded, lambda g, y, a, *, size: (apply("sum", g),),
             "the same number for every unit", "{0}", "{0}", cost=0),
    # Matrices.
    Operator("matvec", "product", 2, _product, _matvec_rule,
             "matrix times vector", "{0} @ {1}", "{0} {1}", 3),
    Operator("matvec_transposed", "product", 2, _transposed_product, None,
             "transposed matrix times vector", "{0}.T @ {1}", r"{0}^\top {1}", 3),
    Operator("outer", "product", 2, _outer, None,
             "outer product, summed over rows of the batch and steps",
             "outer({0}, {1})", r"{0} {1}^\top", 3),
    # Only for the reverse pass, and what is written out before it.
    Operator("clip_gradient", "marker", 1, _common, _clip_rule,
             "a; its gradient is limited to +-limit", "clip_gradient({0})",
             r"\operatorname{{clip}}_\nabla({0})", cost=0),
    Operator("stop_gradient", "marker", 1, _common, lambda g, y, a: (None,),
             "a; no gradient goes through it", "stop_gradient({0})",
             r"\operatorname{{stop}}_\nabla({0})", cost=0),
    Operator("layer_norm", "composite", None, _layer_norm_type, None,
             "(a - mean) / sqrt(mean of squared distance + eps)", "layer_norm({*})",
             r"\operatorname{{LN}}({*})"),
)  # fmt: skip

TABLE: dict[str, Operator] = {row.name: row for row in _ROWS}

EXPANSIONS: dict[str, Callable[[Node], Node]] = {"layer_norm": layer_norm_expansion}


def reciprocal_size(size: str) -> Node:
    """1 / the number of units that ``size`` stands for."""
    return node("reciprocal_size", (), {"size": size}, Vector(ONE))


def is_leaf(each: Node) -> bool:
    """Whether the node's value comes from outside its graph."""
    return TABLE[each.op].kind == "leaf"
