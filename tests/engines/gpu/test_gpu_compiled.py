"""Kernels compiled for an H100, which takes no GPU: Triton's compiler accepts what is emitted.

This shows that they can be compiled and fit on chip, and that addresses have 64 bits. It shows
nothing about what they compute there, nor how fast.
"""

import re

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call, options_for

from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu.frame import LEAST, slot_dtype
from cellwright.engines.gpu.loops import RESIDENT_WARPS, Steps, Way, loops
from cellwright.plan import StepOptions

POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8",
}  # fmt: skip


def kernels(loop):
    """Name, frame's slots and compile-time numbers of a loop's kernels."""
    if isinstance(loop, Steps):
        return [(each.name, each.slots, each.most_rows, 4) for each in loop.launches]
    return [("walk", tuple(loop.frame.slots), LEAST, RESIDENT_WARPS)]


def compiled(loop, precision="ieee"):
    """Everything that is launched for a loop, compiled."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dtypes = {}
    for array in loop.program.arrays():
        for slot in filter(None, (array.slot, array.initial)):
            dtypes[slot] = slot_dtype(array, loop.way.dtype)
    made = []
    for name, slots, block, warps in kernels(loop):
        kernel = getattr(loop.module, name)
        types = {each: "i32" for each in kernel.arg_names[len(slots) :]}
        types |= {"BLOCK": "constexpr", "PRECISION": "constexpr"}
        pointers = [POINTERS[dtypes.get(slot, loop.way.dtype)] for slot in slots]
        types |= dict(zip(kernel.arg_names, pointers, strict=False))
        aligned = {(index,): [["tt.divisibility", 16]] for index in range(len(slots))}
        source = ASTSource(
            kernel, {each: types[each] for each in kernel.arg_names},
            constexprs={"BLOCK": block, "PRECISION": precision}, attrs=aligned,
        )  # fmt: skip
        target = GPUTarget("cuda", 90, 32)
        made.append(build(source, target=target, options={"num_warps": warps}))
    return made


def both_loops(name, hidden, dtype, form, options=None, population=False):
    signature = make_call(
        CATALOGUE[name], options or StepOptions(), Shape(2, 2, 3, hidden)
    ).signature
    made = loops(signature.text, form, Way(dtype, interpreted=False, population=population))
    return [made.forward(keep=True), made.backward(need_x=True)[1]]


@pytest.mark.parametrize(
    ("name", "hidden", "dtype", "form", "options"),
    [
        ("lstm", 128, torch.bfloat16, "resident", None),
        ("lstm", 64, torch.float32, "resident", None),
        ("gru_v1", 20, torch.float16, "resident", "everything"),
        ("lstm", 200, torch.bfloat16, "steps", None),
        ("slstm", 16, torch.float32, "resident", "bf16"),
    ],
    ids=str,
)
def test_kernels_can_be_compiled_and_fit(name, hidden, dtype, form, options):
    options = options_for(CATALOGUE[name])[options or "plain"]
    for loop in both_loops(name, hidden, dtype, form, options):
        for each in compiled(loop, "tf32" if hidden == 64 else "ieee"):
            assert each.metadata.shared <= forms.HOPPER, each.metadata.name


def test_kernels_with_sums_over_units_can_be_compiled():
    """All of them are one launch, with the equations around them; the products are another."""
    for loop in both_loops("layer_norm_lstm", 300, torch.bfloat16, "steps"):
        assert len(loop.launches) == 2
        assert compiled(loop)


def test_addresses_have_64_bits():
    """Steps x rows x units may be more than 2^31: no place is multiplied out in 32 bits."""
    for form in ("resident", "steps"):
        for loop in both_loops("elman", 5, torch.float32, form):
            for each in compiled(loop):
                found = re.findall(r"arith\.muli .*: tensor<.*(i\d+)>", each.asm["ttir"])
                assert set(found) == {"i64"}, each.metadata.name


@pytest.mark.parametrize("form", ["resident", "steps"])
def test_a_member_begins_at_an_address_of_64_bits_and_at_a_row(form):
    """So loads are as wide as without a population, and products in 32 bits no more than there."""
    made = [both_loops("elman", 32, torch.float32, form, population=each) for each in (False, True)]
    for pair in zip(*made, strict=True):
        for one, other in zip(*map(compiled, pair), strict=True):
            narrow, wide, vectors = (
                [re.findall(pattern, each.asm[stage]) for each in (one, other)]
                for pattern, stage in (
                    (r"arith\.muli .*: i32", "ttir"),
                    (r"arith\.muli .*: i64", "ttir"),
                    (r"\bld\.global\S*", "ptx"),
                )
            )
            assert len(narrow[0]) == len(narrow[1])
            assert len(wide[0]) < len(wide[1])
            assert set(vectors[0]) == set(vectors[1])
            assert any(".v4" in each for each in vectors[1])


def test_a_batch_is_no_reason_to_compile_again():
    from cellwright.engines.gpu import compiled as decorated

    (loop, _) = both_loops("elman", 5, torch.float32, "resident")
    kernel = loop.module.walk
    numbers = [each for each in kernel.arg_names if not each.startswith("at_")]
    assert set(numbers) - {"BLOCK", "PRECISION"} <= set(decorated.NUMBERS)
    by_name = {each.name: each for each in kernel.params}
    for name in ("rows", "steps", "first", "stride"):
        assert by_name[name].do_not_specialize
