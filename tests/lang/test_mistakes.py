"""Every mistake that a user can make in a cell gets one error that names its line."""

import pytest

from cellwright import CellError, CellwrightError

FILE = "cells_of_mine.py"
HEADER = "import math\nimport numpy as np\nimport torch\nfrom cellwright.lang import *\n"


def trace(source):
    """Run the source as the file of a user; returns its namespace."""
    namespace = {"__name__": "cells_of_mine"}
    exec(compile(HEADER + source, FILE, "exec"), namespace)
    return namespace


def marked_line(source):
    """Number of the line that ends in ``# <-``, or None."""
    lines = (HEADER + source).splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("# <-")]
    assert len(marked) == 1, "mark one line"
    return marked[0]


def body(*lines, state='"h"', arguments="x, h, W, U, b", returns="h=h"):
    """A cell with these lines; the equation before them keeps every parameter in use."""
    text = "\n".join(f"    {line}" for line in lines)
    end = f"\n    return next_state({returns})" if returns else ""
    return f"@cell(state={state})\ndef mine({arguments}):\n{text}{end}\n"


def equation(line, **how):
    """A cell in which ``line`` is wrong."""
    return body("h = tanh(W @ x + U @ h + b)", f"{line}  # <-", **how)


TWO = {"state": '("h", "c")', "arguments": "x, h, c, W, U, b", "returns": "h=h, c=c"}
UNLIKE = {
    "state": '{"h": "projection", "c": "hidden"}',
    "arguments": "x, h, c, W, U, b",
    "returns": "h=h, c=c",
}

MISTAKES = {
    # What is returned.
    "a state that was not given": (
        body("h = W @ x + h", "return next_state(h=h, c=h)  # <-", arguments="x, h, W", returns=""),
        ["'c'", "not given", "h"],
    ),
    "a state that is missing": (
        body("h = W @ x + h + c", "return next_state(h=h)  # <-", state='("h", "c")',
             arguments="x, h, c, W", returns=""),
        ["does not return", "'c'"],
    ),
    "nothing": (
        "@cell(state='h')  # <-\ndef mine(x, h, W):\n    h = tanh(W @ x + h)\n",
        ["next_state", "NoneType"],
    ),
    "a tuple": (
        "@cell(state='h')  # <-\ndef mine(x, h, W):\n    return tanh(W @ x + h), h\n",
        ["next_state", "tuple"],
    ),
    "a single number as a state": (equation("h = mean(h)"), ["'h'", "single number"]),
    "a comparison as a state": (equation("h = h > 0"), ["'h'", "comparison"]),
    "a state of another size": (
        body("k = tanh(U @ c + W @ x + b)", "c = k + h  # <-", "h = k", **UNLIKE),
        ["projection", "hidden"],
    ),
    "a watch that is not a dict": (
        body("h = W @ x + h", "return next_state(h=h, watch=[h])  # <-", arguments="x, h, W",
             returns=""),
        ["watch", "dict", "list"],
    ),
    "a watch that names a state": (
        body("h = W @ x + h", "return next_state(h=h, watch=dict(h=h))  # <-",
             arguments="x, h, W", returns=""),
        ["'h'", "state"],
    ),
    "a watch that is no name": (
        body("h = W @ x + h", "return next_state(h=h, watch={'gate 1': h})  # <-",
             arguments="x, h, W", returns=""),
        ["gate 1"],
    ),
    "a watch that is a comparison": (
        body("h = W @ x + h", "return next_state(h=h, watch=dict(on=h > 0))  # <-",
             arguments="x, h, W", returns=""),
        ["on", "comparison"],
    ),
    # x.
    "x added": (equation("h = h + x"), ["x", "through @"]),
    "x multiplied": (equation("h = x * h"), ["x", "through @"]),
    "x in a function": (equation("h = h + sigmoid(x)"), ["x", "through @"]),
    "x reduced": (equation("h = h + mean(x)"), ["x", "through @"]),
    "x compared": (equation("h = where(x > 0, h, 0)"), ["x", "through @"]),
    "x normalised": (equation("h = h + layer_norm(x)"), ["x", "through @"]),
    "x as a state": (
        body("h = W @ x + h", "return next_state(h=x)  # <-", arguments="x, h, W", returns=""),
        ["x", "through @"],
    ),
    "x watched": (
        body("h = W @ x + h", "return next_state(h=h, watch=dict(seen=x))  # <-",
             arguments="x, h, W", returns=""),
        ["x", "through @"],
    ),
    # Parameters.
    "matrices of unlike shapes under one name": (
        equation("h = h + U @ x"), ["U", "hidden", "input", "names of their own"],
    ),
    "matrices of unlike shapes under one member": (
        body("k = tanh(W.i @ x + U @ h + b)", "h = k + W.i @ h  # <-"), ["W.i", "input", "hidden"],
    ),
    "matrices of unlike rows under one name": (
        body("h = h + tanh(U @ c + W @ x + b)", "c = c + W @ x  # <-", **UNLIKE),
        ["projection", "hidden"],
    ),
    "a matrix used as a vector": (equation("h = h * U"), ["U", "vector here", "matrix"]),
    "a vector used as a matrix": (equation("h = b @ h"), ["b", "matrix here", "vector"]),
    "a parameter that is unused": (
        "@cell(state='h')  # <-\ndef mine(x, h, W, V):\n    return next_state(h=tanh(W @ x + h))\n",
        ["V", "never used"],
    ),
    "a member that is named only": (
        "@cell(state='h')  # <-\n"
        "def mine(x, h, W):\n    W.k\n    return next_state(h=W.i @ x + h)\n",
        ["W.k", "never used"],
    ),
    "a parameter whose value goes nowhere": (
        body("k = W.k @ x  # <-", "h = tanh(W.i @ x + h)", arguments="x, h, W"),
        ["W.k", "no effect"],
    ),
    "a group used by itself and with members": (
        "@cell(state='h')  # <-\n"
        "def mine(x, h, W):\n    return next_state(h=W @ x + W.i @ x + h)\n",
        ["W", "itself", "W.i"],
    ),
    "a parameter that is called": (equation("h = W(h)"), ["callable"]),
    # @.
    "@ between vectors": (equation("h = h @ h"), ["left side of @", "parameter"]),
    "@ the wrong way round": (equation("h = h @ U"), ["left side of @"]),
    "a number before @": (equation("h = 2 @ h"), ["left side of @"]),
    "@ on one number a row": (
        body("h = tanh(W @ x + h)", "h = h + U @ mean(h)  # <-", arguments="x, h, W, U"),
        ["U", "single number"],
    ),
    "@ on a comparison": (equation("h = U @ (h > 0)"), ["comparison", "where"]),
    "@ on a vector of another size": (
        body("k = tanh(U @ c + W @ x + b)", "c = k + U @ h  # <-", **UNLIKE),
        ["U", "projection", "hidden"],
    ),
    # Sizes.
    "vectors of unlike sizes": (
        body("c = c + h  # <-", "h = tanh(U @ c + W @ x + b)", **UNLIKE), ["projection", "hidden"],
    ),
    "normalising vectors of unlike sizes": (
        body("c, h = layer_norm(c, h)  # <-", "h = tanh(U @ c + W @ x + b)", **UNLIKE),
        ["projection", "hidden"],
    ),
    # Python that a trace cannot follow.
    "if on a comparison": (equation("if h > 0: h = -h"), ["where"]),
    "if on a vector": (equation("if h: h = -h"), ["where"]),
    "if on an equality": (equation("if h == 0: h = -h"), ["where"]),
    "if on an inequality": (equation("if h != 0: h = -h"), ["where"]),
    "while": (equation("while h > 0: h = h - 1"), ["where"]),
    "a conditional expression": (equation("h = h if h > 0 else 0"), ["where"]),
    "and": (equation("h = where(h > 0 and h < 1, h, 0)"), ["where"]),
    "a chained comparison": (equation("h = where(0 < h < 1, h, 0)"), ["where"]),
    "not": (equation("h = where(not h > 0, h, 0)"), ["where"]),
    "Python's max": (equation("h = max(h, 0)"), ["where"]),
    "an index": (equation("h = h + h[0]"), ["index"]),
    "a slice": (equation("h = h[:2]"), ["index"]),
    "a loop over units": (equation("for unit in h: h = h + unit"), ["taken apart"]),
    "unpacking": (equation("a, b = h"), ["taken apart"]),
    "len": (equation("h = h * len(h)"), ["len"]),
    "float": (equation("h = h * float(h)"), ["number"]),
    "a method of tensors": (equation("h = h.tanh()"), ["tanh"]),
    "a property of tensors": (equation("h = h * h.shape"), ["shape"]),
    # Other libraries.
    "math": (equation("h = math.tanh(h)"), ["number"]),
    "numpy function": (equation("h = np.tanh(h)"), []),
    "numpy function of two": (equation("h = np.maximum(h, 0)"), []),
    "numpy array": (equation("h = np.ones(3) * h"), ["numpy.ndarray"]),
    "numpy array on the right": (equation("h = h - np.ones(3)"), ["numpy.ndarray"]),
    "torch function": (equation("h = torch.tanh(h)"), ["torch.tanh", "cellwright.tanh"]),
    "torch function of two": (equation("h = torch.maximum(h, U @ h)"), ["torch.maximum"]),
    "torch's where": (equation("h = torch.where(h > 0, h, h)"), ["torch.where"]),
    "torch.nn.functional": (equation("h = torch.nn.functional.relu(h)"), ["relu"]),
    "torch function of a parameter": (equation("h = h * torch.sigmoid(b)"), ["torch.sigmoid"]),
    "torch tensor": (equation("h = torch.ones(3) * h"), ["torch"]),
    "torch tensor on the right": (equation("h = h * torch.ones(3)"), ["torch"]),
    # Values that are not numbers.
    "a string": (equation("h = h + 'one'"), ["str", "'one'"]),
    "None": (equation("h = h * None"), ["NoneType"]),
    "a list": (equation("h = h + [1, 2]"), ["list"]),
    "a truth value": (equation("h = h * True"), ["bool"]),
    "a complex number": (equation("h = h * 1j"), ["complex"]),
    "a function": (equation("h = h + tanh"), ["function"]),
    # Functions.
    "a power that is unknown": (equation("h = h ** 3"), ["** 3", "** 2"]),
    "a power of a number": (equation("h = 2 ** h"), []),
    "floor division": (equation("h = h // 2"), []),
    "no argument": (equation("h = sigmoid()"), ["argument"]),
    "too many arguments": (equation("h = tanh(h, h)"), ["argument"]),
    "a comparison as a number": (equation("h = h + (h > 0)"), ["comparison", "where"]),
    "a comparison in a function": (equation("h = tanh(h > 0)"), ["comparison", "where"]),
    "a mean of a comparison": (equation("h = h + mean(h > 0)"), ["comparison", "where"]),
    "a mean of a mean": (equation("h = h + mean(mean(h))"), ["single number"]),
    "a mean of a constant": (equation("h = h + mean(2)"), ["single number"]),
    "where without a comparison": (equation("h = where(h, h, 0)"), ["where", "comparison"]),
    "where with a truth value": (equation("h = where(True, h, 0)"), []),
    "layer_norm of nothing": (equation("h = layer_norm()"), ["layer_norm"]),
    "layer_norm of a single number": (equation("h = h + layer_norm(mean(h))"), ["layer_norm"]),
    "layer_norm with no eps": (equation("h = layer_norm(h, eps=0)"), ["eps", "0"]),
    # The function's arguments and the decorator's.
    "x under another name": (
        "@cell(state='h')  # <-\ndef mine(u, h, W):\n    return next_state(h=W @ u + h)\n",
        ["x, h", "(u, h, W)"],
    ),
    "states in another order": (
        "@cell(state=('h', 'c'))  # <-\ndef mine(x, c, h, W):\n    return next_state(h=h, c=c)\n",
        ["x, h, c", "(x, c, h, W)"],
    ),
    "a state that is no argument": (
        "@cell(state=('h', 'c'))  # <-\ndef mine(x, h, W):\n    return next_state(h=W @ x + h)\n",
        ["x, h, c"],
    ),
    "a default": (
        "@cell(state='h')  # <-\ndef mine(x, h, W, k=2):\n    return next_state(h=W @ x + k * h)\n",
        ["k", "default"],
    ),
    "any number of arguments": (
        "@cell(state='h')  # <-\ndef mine(x, h, *W):\n    return next_state(h=h)\n",
        ["W", "plain arguments"],
    ),
    "a keyword argument": (
        "@cell(state='h')  # <-\ndef mine(x, h, *, W):\n    return next_state(h=W @ x + h)\n",
        ["W", "plain arguments"],
    ),
    "no function": ("cell(state='h')(int)  # <-\n", ["function", "int"]),
    "no state": ("cell(state=())  # <-\n", ["at least one state"]),
    "no names of states": (
        "@cell  # <-\ndef mine(x, h, W):\n    return next_state(h=W @ x + h)\n", ["state="],
    ),
    "a state named twice": ("cell(state=('h', 'h'))  # <-\n", ["twice"]),
    "a state that is no name": ("cell(state=('h 1',))  # <-\n", ["'h 1'"]),
    "a state that is a keyword": ("cell(state=('if',))  # <-\n", ["'if'"]),
    "a state that is no text": ("cell(state=(1,))  # <-\n", ["1"]),
    "states that are no collection": ("cell(state=1)  # <-\n", ["state", "1"]),
    "a state called watch": ("cell(state='watch')  # <-\n", ["watch"]),
    "a state with an underscore before": ("cell(state='_h')  # <-\n", ["_h"]),
    "a state of the size of x": ("cell(state={'h': 'input'})  # <-\n", ["'h'", "'input'"]),
    "a state of size one": ("cell(state={'h': 'one'})  # <-\n", ["'h'", "'one'"]),
    "a size that is no name": ("cell(state={'h': 3})  # <-\n", ["3"]),
    "init of a parameter that is not there": (
        "@cell(state='h', init={'gain': 1})  # <-\n"
        "def mine(x, h, W):\n    return next_state(h=W @ x + h)\n",
        ["'gain'", "W"],
    ),
    "init that is no number": (
        "@cell(state='h', init={'W': 'ones'})  # <-\n"
        "def mine(x, h, W):\n    return next_state(h=W @ x + h)\n",
        ["'ones'", "W"],
    ),
    "a gate that is not there": (
        "@cell(state='h', forget_gate='q')  # <-\n"
        "def mine(x, h, W, b):\n    return next_state(h=W.f @ x + h + b.f)\n",
        ["'q'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_line(name):
    source, words = MISTAKES[name]
    with pytest.raises(CellError) as caught:
        trace(source)
    message = str(caught.value)
    assert message.startswith(f"{FILE}:{marked_line(source)}: "), message
    for word in words:
        assert word in message
    assert "\n" not in message
    assert isinstance(caught.value, CellwrightError)


def test_the_cells_that_the_mistakes_are_made_in_are_right_without_them():
    for how in ({}, TWO):
        trace(body("h = tanh(W @ x + U @ h + b)", **how))
    trace(body("h = tanh(U @ h + W @ x + b)", "c = tanh(c)", **UNLIKE))


def test_the_line_is_that_of_a_helper_where_the_mistake_is_there():
    source = (
        "def gate(h):\n    return h[0]  # <-\n"
        "@cell(state='h')\ndef mine(x, h, W):\n    return next_state(h=W @ x + gate(h))\n"
    )
    with pytest.raises(CellError) as caught:
        trace(source)
    assert str(caught.value).startswith(f"{FILE}:{marked_line(source)}: ")


def test_a_mistake_leaves_no_trace_behind():
    import sys

    with pytest.raises(CellError):
        trace(equation("h = h[0]"))
    assert sys.getprofile() is None
    assert trace(body("h = tanh(W @ x + U @ h + b)"))["mine"].states[0].name == "h"


def test_an_error_of_pythons_own_keeps_its_kind_or_becomes_a_cell_error():
    source = body("h = tanh(W @ x + U @ h + b) * missing_name")
    with pytest.raises((NameError, CellError)) as caught:
        trace(source)
    assert "missing_name" in str(caught.value)
