"""What a cell's function computes with while it is traced.

A :class:`Symbol` stands for a vector, a :class:`Parameter` for a weight whose kind (matrix or
vector) is settled by its first use. Both record the line of the user's file that made them,
so that a mistake can be reported where it was written.
"""

from __future__ import annotations

import itertools
import os
import sys
from types import FrameType
from typing import Any, NoReturn

from cellwright.errors import CellError
from cellwright.ir import ONE
from cellwright.lang.size import Size

_HERE = os.path.dirname(os.path.abspath(__file__))
_LIBRARIES = {"numpy", "torch"}  # they hand a function called on a symbol back to the symbol
_counter = itertools.count()


def user_line() -> str:
    """``file:line`` of the user's code that is being run."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(frame):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_inside(frame: FrameType) -> bool:
    """Whether the frame is of this package, or of a library that called it."""
    library = str(frame.f_globals.get("__name__")).partition(".")[0]
    return frame.f_code.co_filename.startswith(_HERE) or library in _LIBRARIES


def fail(message: str, line: str | None = None) -> NoReturn:
    """Raise a :class:`CellError` that names the user's line."""
    raise CellError(f"{line or user_line()}: {message}")


class Operand:
    """Arithmetic shared by symbols and parameters."""

    # NumPy then leaves array * symbol to __rmul__, which explains what is wrong.
    __array_ufunc__ = None

    def __add__(self, other: Any) -> Symbol:
        return pointwise("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return pointwise("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return pointwise("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return pointwise("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return pointwise("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return pointwise("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return pointwise("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return pointwise("div", other, self)

    def __neg__(self) -> Symbol:
        return pointwise("neg", self)

    def __pos__(self) -> Symbol:
        return as_symbol(self)

    def __abs__(self) -> Symbol:
        return pointwise("abs", self)

    def __pow__(self, exponent: Any) -> Symbol:
        if isinstance(exponent, (int, float)) and exponent in (2, 0.5):
            return pointwise("square" if exponent == 2 else "sqrt", self)
        fail(f"** {exponent!r}: only ** 2 and ** 0.5 are known; use exp(n * log(v)) for others")

    def __lt__(self, other: Any) -> Symbol:
        return pointwise("less", self, other)

    def __le__(self, other: Any) -> Symbol:
        return pointwise("less_equal", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return pointwise("greater", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return pointwise("greater_equal", self, other)

    # Without these two, `if h == 0` would compare identities and take the other branch unseen.
    def __eq__(self, other: object) -> NoReturn:
        fail("== has no meaning between values of the cell; use where(condition, a, b) with <, >")

    def __ne__(self, other: object) -> NoReturn:
        fail("!= has no meaning between values of the cell; use where(condition, a, b) with <, >")

    __hash__ = object.__hash__

    def __matmul__(self, other: Any) -> Symbol:
        fail("the left side of @ has to be a parameter, as in W.i @ x")

    def __rmatmul__(self, other: Any) -> Symbol:
        fail("the left side of @ has to be a parameter, as in W.i @ x")

    def __bool__(self) -> bool:
        fail("a value of the cell has no truth while it is traced; use where(condition, a, b)")

    def __iter__(self) -> Any:
        fail("a vector of the cell cannot be taken apart; equations act on whole vectors")

    def __getitem__(self, key: Any) -> Any:
        fail("a vector of the cell cannot be indexed; equations act on whole vectors")

    def __float__(self) -> float:
        fail("a value of the cell is not a number while it is traced")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> NoReturn:
        name = getattr(function, "__name__", str(function))
        fail(f"torch.{name} cannot be used in a cell; use cellwright.{name} if there is one")


class Symbol(Operand):
    """A vector (or a single number a row) inside a cell."""

    def __init__(
        self,
        op: str,
        operands: tuple[Symbol, ...] = (),
        *,
        size: Size,
        boolean: bool = False,
        **attributes: Any,
    ):
        self.op = op
        self.operands = operands
        self.attributes = attributes
        self.size = size
        self.boolean = boolean
        self.order = next(_counter)
        self.line = user_line()

    def __repr__(self) -> str:
        return f"<{self.op} of size {self.size}, {self.line}>"


class Parameter(Operand):
    """A weight ``group.member``; its first use says if it is a matrix or a vector."""

    def __init__(self, group: str, member: str | None):
        self.group = group
        self.member = member
        self.kind: str | None = None
        self.rows = Size()
        self.columns = Size()
        self.line = ""
        self.order = -1
        self.symbol: Symbol | None = None

    @property
    def name(self) -> str:
        """``group.member``, or ``group`` where it has no member."""
        return self.group if self.member is None else f"{self.group}.{self.member}"

    def use_as(self, kind: str) -> None:
        """Settle the kind, or object if it was used as the other kind before."""
        if self.kind is None:
            self.kind, self.line, self.order = kind, user_line(), next(_counter)
        elif self.kind != kind:
            fail(
                f"{self.name} is used as a {kind} here, and as a {self.kind} at {self.line}; "
                f"give one of them another name"
            )

    def as_vector(self) -> Symbol:
        """The parameter as a vector that is added or multiplied unit by unit."""
        self.use_as("vector")
        if self.symbol is None:
            self.symbol = Symbol("parameter", size=self.rows, name=self.name)
        return self.symbol

    def __matmul__(self, other: Any) -> Symbol:
        operand = as_symbol(other, entering_product=True)
        if operand.boolean:
            fail(f"{self.name} @ a comparison: use where(condition, 1, 0) first")
        if operand.size.is_one:
            fail(f"{self.name} @ a single number a row; @ needs a vector")
        self.use_as("matrix")
        if not self.columns.join(operand.size):
            fail(
                f"{self.name} has {self.columns} columns (see {self.line}) "
                f"and meets a vector of size {operand.size}; matrices of unlike shapes need "
                f"names of their own"
            )
        return Symbol("matvec", (operand,), size=self.rows, matrix=self)

    def __repr__(self) -> str:
        return f"<parameter {self.name}>"


class ParameterGroup(Operand):
    """A function argument such as ``W``: ``W.i`` is a member, ``W`` itself a parameter too.

    Every attribute without a leading underscore is a member, so the class has no others.
    """

    def __init__(self, group: str):
        self._direct = Parameter(group, None)
        self._members: dict[str, Parameter] = {}

    def __getattr__(self, member: str) -> Parameter:
        if member.startswith("_"):
            raise AttributeError(f"a parameter's name cannot start with an underscore: {member}")
        return self._members.setdefault(member, Parameter(self._direct.group, member))

    def __matmul__(self, other: Any) -> Symbol:
        return self._direct.__matmul__(other)

    def __repr__(self) -> str:
        return f"<parameter group {self._direct.group}>"


def used_parameters(group: ParameterGroup) -> list[Parameter]:
    """The parameters of a group that the cell uses; a :class:`CellError` for idle ones."""
    direct, members = group._direct, list(group._members.values())
    name = direct.group
    if direct.kind is None and not members:
        fail(f"parameter {name} is never used; remove it from the arguments", direct.line or None)
    for each in members:
        if each.kind is None:
            fail(f"parameter {each.name} is named but never used in an equation")
    if direct.kind is not None and members:
        fail(
            f"{name} is used by itself (at {direct.line}) and with members such as "
            f"{members[0].name}"
        )
    return members or [direct]


def as_symbol(value: Any, *, entering_product: bool = False) -> Symbol:
    """``value`` as a symbol: numbers become constants, parameters vectors."""
    if isinstance(value, ParameterGroup):
        value = value._direct
    if isinstance(value, Parameter):
        return value.as_vector()
    if isinstance(value, Symbol):
        if value.op == "input" and not entering_product:
            fail(
                f"{value.attributes['name']} may enter a cell only through @, "
                f"as in W.i @ {value.attributes['name']}: all of it is computed before the loop"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        fail(f"expected a value of the cell or a number, got {kind}: {value!r}"[:300])
    return Symbol("constant", size=Size(ONE), value=float(value))


def pointwise(op: str, *values: Any) -> Symbol:
    """An operator that acts unit by unit; single numbers broadcast."""
    operands = tuple(as_symbol(value) for value in values)
    condition = operands[:1] if op == "where" else ()
    if condition and not condition[0].boolean:
        fail("the first argument of where has to be a comparison, such as a > b")
    for each in operands[len(condition) :]:
        if each.boolean:
            fail(f"a comparison (made at {each.line}) is used as a number; use where(...)")
    size = Size(ONE)
    for each in operands:
        if each.size.is_one:
            continue
        if size.is_one:
            size = each.size
        elif not size.join(each.size):
            fail(f"vectors of unlike sizes meet here: {size} and {each.size}")
    boolean = op in ("less", "less_equal", "greater", "greater_equal")
    return Symbol(op, operands, size=size, boolean=boolean)


def reduction(op: str, value: Any) -> Symbol:
    """An operator over all units of a row."""
    operand = as_symbol(value)
    if operand.boolean:
        fail(f"{op} of a comparison; use where(condition, 1, 0) first")
    if operand.size.is_one:
        fail(f"{op} of a single number a row; it needs a vector")
    return Symbol(op, (operand,), size=Size(ONE))
