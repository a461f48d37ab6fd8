"""Short sequences of the same extents again and again, without gradients.

What surrounds the loops of a small recurrence costs more than the loops. Where a signature runs
with the same extents once more, its arguments and its working memory are made ready and stay.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from cellwright.engines.cpu import jit, threads
from cellwright.engines.cpu.kernels import Kernels, kernels
from cellwright.engines.cpu.members import lanes_driver
from cellwright.engines.cpu.pages import quick_empty
from cellwright.engines.cpu.rivals import Rivals
from cellwright.engines.cpu.sharing import other_way
from cellwright.engines.protocol import Call, Result

MOST = 1 << 28
"""Multiplications of a whole call up to which it is worth while."""

CALLS = 128
"""Kinds of calls that stay ready in each thread of Python; for one more all make room."""

LARGE = 1 << 20
"""Weights of a program from which on a second place for them is too much memory."""

T = TypeVar("T")

Run = Callable[[Call], Result]
RunTogether = Callable[[Sequence[Call]], list[Result]]


class _Ready(threading.local):
    """What this thread of Python has ready, and the kind of call that it ran last."""

    def __init__(self) -> None:
        self.runs: dict[object, Any] = {}  # None where there is no such way
        self.last: dict[object, object] = {}  # of each signature, and how it runs


_ready = _Ready()


def ready(call: Call) -> Run | None:
    """A way to run calls like this one that has been made ready, or is now; else None."""
    found: Run | None = _find(call, call.reverse, _alone, call)
    return found


def ready_together(calls: Sequence[Call]) -> RunTogether | None:
    """The same for both directions of a layer, on a thread each."""
    found: RunTogether | None = _find(calls[0], None, _together, calls)
    return found


def ready_stack(
    calls: Sequence[Call], make: Callable[[Sequence[Call]], RunTogether | None]
) -> RunTogether | None:
    """The same for the layers of a stack.

    Args:
        calls: the layers; x of all but the first has the shape only.
        make: makes the way.
    """
    above = tuple(each.signature.text for each in calls[1:])
    found: RunTogether | None = _find(calls[0], above, make, calls)
    return found


def ready_members(call: Call, make: Callable[[Call], Run | None]) -> Run | None:
    """The same for a population.

    Args:
        call: it.
        make: makes a way for tensors that lie like those of a call.
    """
    lie = tuple(each.stride() for each in (call.x, *call.states, *call.weights))
    found: Run | None = _find(call, (call.reverse, lie), make, call)
    return found


def ready_training(call: Call, stacked: bool, make: Callable[[Call], T | None]) -> T | None:
    """The same for calls that gradients are wanted of.

    Args:
        call: it.
        stacked: what else the way depends on.
        make: makes the way.
    """
    # A layer may hold weights that its signature does not read.
    how = "training", call.reverse, stacked, len(call.weights)
    found: T | None = _find(call, how, make, call)
    return found


def _find(call: Call, how: object, make: Callable[[Any], Any], what: object) -> Any:
    x, limit = call.x, jit.features_limit()
    kind = (call.signature.text, x.shape, x.dtype, how, threads.count(), limit)
    if kind in _ready.runs:
        return _ready.runs[kind]
    # Batches of ever other lengths would be made ready in vain.
    layer = call.signature.text, how
    if _ready.last.get(layer) != kind:
        _ready.last[layer] = kind
        return None
    if len(_ready.runs) >= CALLS:
        _ready.runs.clear()
        _ready.last.clear()
    _ready.runs[kind] = make(what)
    return _ready.runs[kind]


def _alone(call: Call) -> Run | None:
    bound = bound_like(call, threads.count())
    if bound is None:
        return None
    other = bound.other()
    run = _run_alone(bound)
    return run if other is None else _run_faster([run, _run_alone(other)])


def _run_alone(bound: BoundCall) -> Run:
    alone = all(each.most == 1 for each in bound.launches)
    starts = [_Lanes([bound])] if alone else [threads.Prepared(each) for each in bound.launches]
    enter, leave = bound.enter, bound.leave

    def run(call: Call) -> Result:
        output, entered = enter(call)
        for each in starts:
            each.run()
        return leave(output, entered)

    return run


def _together(calls: Sequence[Call]) -> RunTogether | None:
    made = [bound_like(call, 1) for call in calls]
    bounds = [each for each in made if each is not None]
    if len(bounds) < len(made):
        return None
    start = _Lanes(bounds)

    def run(calls: Sequence[Call]) -> list[Result]:
        entered = [bound.enter(call) for bound, call in zip(bounds, calls, strict=True)]
        start.run()
        return [bound.leave(*each) for bound, each in zip(bounds, entered, strict=True)]

    return run


def _run_faster(runs: Sequence[Run]) -> Run:
    rivals = Rivals()

    def run(call: Call) -> Result:
        way, begin = rivals.choose(), perf_counter()
        result = runs[way](call)
        rivals.note(way, perf_counter() - begin)
        return result

    return run


class _Lanes(threads.Prepared):
    """One launch of all programs: each call's in turn, and the calls on a thread each."""

    def __init__(self, bounds: Sequence[BoundCall]):
        self._tables = []
        for each in bounds:
            tasks = [number for t in each.launches for number in (t.address, t.arguments, t.rows)]
            self._tables.append((ctypes.c_int64 * (1 + len(tasks)))(len(each.launches), *tasks))
        count = len(bounds)
        self._table = (ctypes.c_int64 * count)(*map(ctypes.addressof, self._tables))
        brief = all(launch.brief for each in bounds for launch in each.launches)
        place = ctypes.addressof(self._table)
        super().__init__(threads.Launch(lanes_driver(), place, count, threads.ROWS, count, brief))


def bound_like(call: Call, team: int) -> BoundCall | None:
    """Calls like this one, on so many threads; None where it is not worth while or not possible."""
    plan = call.signature.plan
    if plan.graph.streams or plan.forward.once or plan.forward.trace:
        return None
    made = kernels(call.signature.text, call.x.dtype == torch.float64, jit.features_limit())
    steps, rows = call.x.shape[:2]
    _, inputs, loop = made.forward(False, made.fuses(rows, team))
    programs = [each for each in (inputs, loop) if each is not None]
    work = steps * rows * sum(each.work for each in programs)
    small = 0 < work <= MOST and all(each.packed < LARGE for each in programs)
    if not small or not all(each.can_bind for each in programs):
        return None
    return BoundCall(call, made, team)


class BoundCall:
    """The forward pass of calls like this one, with memory of its own.

    Args:
        call: one of them.
        made: its kernels.
        team: threads.
        way: what of the loop is shared out among how many of them, if not as always.

    Attributes:
        programs: in their order.
    """

    def __init__(self, call: Call, made: Kernels, team: int, way: tuple[int, int] | None = None):
        self._made = call, made, team
        plan, sizes, dtype = call.signature.plan, call.signature.size, call.x.dtype
        steps, rows = call.x.shape[:2]
        weights = [_whole(each) for each in call.weights]
        found, inputs, loop = made.forward(False, made.fuses(rows, team))
        self._at: dict[str, int] = {}
        self.programs = []
        if inputs is not None:
            self._inputs = torch.empty(steps * rows * found.width, dtype=dtype)
            self._at["inputs"] = self._inputs.data_ptr()
            alone = (threads.ROWS, 1) if team == 1 else None
            self.programs.append(inputs.bind(weights, 1, steps * rows, way=alone))
        way = (threads.ROWS, 1) if team == 1 else way
        bound = loop.bind(weights, steps, rows, reverse=call.reverse, ring=True, way=way)
        self.programs.append(bound)
        self.launches = [launch for each in self.programs for launch in each.launches]
        last = call.steps[-1]
        # Bytes that are skipped to the last step of the output, or the address of the state that
        # is left of two steps in turn.
        self._left: list[tuple[bool, int]] = []
        self._states, self._rings = [], []
        for number, each in enumerate(plan.graph.states):
            size = sizes[each.size]
            self._states.append(((rows, size), (size, 1), dtype))
            step = rows * size * dtype.itemsize
            if number == 0 and plan.forward.next[each.name] is plan.forward.output:
                self._left.append((True, last * step))
                continue
            self._rings.append(torch.empty((2, rows, size), dtype=dtype))
            ring = self._at[f"state.{each.name}"] = self._rings[-1].data_ptr()
            self._left.append((False, ring + (last & 1) * step))
        self._initial = [f"initial.{each.name}" for each in plan.graph.states]
        self._places = made.places
        self._bases: list[int] = []
        self._moving = ["x", "output", *self._initial]
        self._move = [
            (each.arguments, each.slots[name], number)
            for each in self.programs
            for number, name in enumerate(self._moving)
            if name in each.slots
        ]
        units = sizes[plan.forward.output.size]
        self._output = (steps, rows, units), (rows * units, units, 1), dtype

    def other(self) -> BoundCall | None:
        """The same with a loop that may be faster, where there is one."""
        call, made, team = self._made
        work = self.programs[-1].compiled.work
        way = other_way(work, *call.x.shape[:2]) if team > 1 else None
        return None if way is None else BoundCall(call, made, team, way)

    def enter(self, call: Call) -> tuple[Tensor, list[Tensor]]:
        """Let the programs work on a call; returns its output to be, and what they will read."""
        output = quick_empty(*self._output)
        weights = [_whole(each) for each in call.weights]
        entering = [_whole(each) for each in (call.x, *call.states)]
        x, *before = map(Tensor.data_ptr, entering)
        moved = x, output.data_ptr(), *before
        bases = [*map(Tensor.data_ptr, weights)]
        if bases == self._bases:
            for arguments, place, number in self._move:
                arguments[place] = moved[number]
        else:
            self._enter_weights(weights, bases, moved)
        return output, entering + weights

    def _enter_weights(self, weights: list[Tensor], bases: list[int], moved: Sequence[int]) -> None:
        at = self._at
        for slot, tensor, skipped in self._places:
            at[slot] = bases[tensor] + skipped
        at |= zip(self._moving, moved, strict=True)
        for bound in self.programs:
            bound.enter(at, weights)
        self._bases = bases

    def leave(self, output: Tensor, entered: list[Tensor]) -> Result:
        """The call's results, when the programs have run."""
        begin, after = output.data_ptr(), []
        for (inside, place), kind in zip(self._left, self._states, strict=True):
            state = quick_empty(*kind)
            ctypes.memmove(state.data_ptr(), place + begin if inside else place, state.nbytes)
            after.append(state)
        return Result(output, after, [], [])


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()
