"""Expression graphs: nodes, their types, the table of operators, the verifier."""

from cellwright.ir.node import (
    Node,
    apply,
    as_node,
    constant,
    leaf,
    node,
    rebuild,
    substitute,
    topological,
)
from cellwright.ir.operators import TABLE, GraphTypeError, Operator, is_leaf, where
from cellwright.ir.types import HIDDEN, INPUT, ONE, Matrix, Type, Vector
from cellwright.ir.verify import GraphError, expand_composites, leave_out_markers, verify

__all__ = [
    "HIDDEN", "INPUT", "ONE", "TABLE", "GraphError", "GraphTypeError", "Matrix", "Node",
    "Operator", "Type", "Vector", "apply", "as_node", "constant", "expand_composites", "is_leaf",
    "leaf", "leave_out_markers", "node", "rebuild", "substitute", "topological", "verify", "where",
]  # fmt: skip
