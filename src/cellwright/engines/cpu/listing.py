"""The compiled loops of a cell as text, for people to read: ``cellwright cells lstm --asm``."""

from __future__ import annotations

import textwrap

import torch

from cellwright.engines.cpu import jit
from cellwright.engines.cpu.body import emit
from cellwright.engines.cpu.engine import CpuEngine
from cellwright.engines.cpu.kernels import JOIN_FROM, Kernels
from cellwright.engines.cpu.program import Program
from cellwright.engines.cpu.programs import backward, can_fuse, forward
from cellwright.engines.cpu.spatial_programs import segments
from cellwright.engines.signature import Signature
from cellwright.errors import EngineError

_WIDTH = 100


def listing(signature: Signature, assembly: bool) -> str:
    """The loops of a recurrence in training, float32, as LLVM has optimised them for this machine.

    Each is headed by comments: which loop it is, and what the array of its arguments holds. The
    micro-kernels that they call (``cellwright_micro_...``) are those of all cells, not shown here.

    Args:
        signature: of a layer.
        assembly: assembler rather than LLVM IR.

    Raises:
        EngineError: the CPU engine cannot run the recurrence.

    Example:
        >>> import cellwright as cw
        >>> layer = cw.nn.Recurrent("gru", input_size=3, hidden_size=4, device="meta")
        >>> signature = layer.signature(0, lengths=False, reset=False, trace=False)
        >>> print(listing(signature, assembly=False).splitlines()[0])
        ; gru, forward: the loop over time, products with x inside (from 4 rows a thread)
    """
    objection = CpuEngine().objection(signature, torch.device("cpu"), torch.float32)
    if objection:
        raise EngineError(f"the cpu engine cannot run cell {signature.spec.name}: {objection}")
    parts = []
    for title, program in _programs(signature).items():
        text = emit(program, double=False)
        if assembly:
            code = jit.assembly(text)
        else:
            code = str(jit.optimise(text, jit.target(jit.features_limit()))[0])
        mark = "# " if assembly else "; "
        arguments = f"arguments, 8 bytes each: {', '.join(program.slots)}"
        lines = [f"{signature.spec.name}, {title}", *textwrap.wrap(arguments, _WIDTH)]
        parts.append("".join(f"{mark}{line}\n" for line in lines) + code.strip("\n"))
    return "\n\n\n".join(parts) + "\n"


def _programs(signature: Signature) -> dict[str, Program]:
    """What runs where gradients are wanted, that of x included: title -> program, in order."""
    if signature.spatial:
        return _segments(signature)
    kernels = Kernels(signature, double=False)
    signature, rows = kernels.signature, kernels.fuse_from
    fuse = rows is not None
    there = forward(signature, keep=True, fuse=fuse, in_place=True)
    join = kernels.joins(JOIN_FROM)
    back = kernels.planned(need_x=True, join=join)
    from_ = f" (from {rows} rows a thread)" if rows else ""
    inside = f", products with x inside{from_}" if fuse else ""
    joined = f", all but products inside (from {JOIN_FROM} rows)" if join else ""
    found = {
        "forward: inputs, for all steps at once": there.inputs,
        f"forward: the loop over time{inside}": there.loop,
        f"backward: the loop over time, from the last step to the first{joined}": back.loop,
        "backward: inputs, for all steps at once": back.inputs,
    }
    return {title: program for title, program in found.items() if program is not None}


def _segments(signature: Signature) -> dict[str, Program]:
    """The same where ``@`` is a convolution: a program behind every convolution of torch's."""
    there = forward(signature, keep=True, fuse=can_fuse(signature), apart=True)
    back = backward(signature, need_x=True)
    passes = {
        "forward: inputs": (there.inputs, False),
        "forward: a step": (there.loop, True),
        "backward: a step": (back.loop, True),
        "backward: inputs": (back.inputs, False),
    }
    found = {}
    for title, (program, looped) in passes.items():
        if program is not None:
            parts = segments(program, signature.slices, frozenset(), looped=looped)
            for number, each in enumerate(parts, start=1):
                found[f"{title}, part {number} of {len(parts)}"] = each.program
    return found
