"""Products over all steps and rows, and weights put into the order of the micro-kernels."""

import ctypes

import pytest
import torch
from engines.cases import CATALOGUE, Shape, make_call
from engines.cpu.cpu_cases import Guards, cast, poison

from cellwright.engines.cpu import matrices, sharing, threads
from cellwright.engines.cpu.kernels import kernels
from cellwright.plan import StepOptions

DTYPES = [torch.float32, torch.float64]
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Rows by 6, 4, 3, 2 and 1; columns in panels of four vectors of 16 or 8; k in blocks of 192.
SIZES = [
    (1, 1, 1), (5, 3, 7), (2, 17, 1), (6, 64, 512), (7, 65, 513), (13, 130, 1100), (8, 31, 3),
    (25, 129, 40), (4, 128, 1024), (11, 9, 511), (6, 70, 192), (7, 33, 193), (5, 16, 383),
    (1030, 17, 2),
]  # fmt: skip


def draw(guards, rows, columns, stride, dtype, whole_numbers=False):
    """A matrix whose rows lie ``stride`` apart, with NaN between them."""
    seed = 1000 * rows + columns
    generator = torch.Generator().manual_seed(seed)
    held = guards.empty(rows, stride, dtype=dtype)
    if whole_numbers:
        values = torch.randint(-8, 9, (rows, columns), generator=generator)
    else:
        values = torch.randn(rows, columns, generator=generator)
    held[:, :columns] = values.to(dtype)
    return held[:, :columns]


def add(job, m, n, k, left, right, gradient, other=None, other_from=None, *, backwards=False):
    """Add a job; ``backwards`` from the last of each tensor's rows to the first."""

    def begin(v):
        return v.data_ptr() if v is None or not backwards or not len(v) else v[-1].data_ptr()

    way = -1 if backwards else 1
    job.add(
        m, n, k, begin(left), way * left.stride(0), begin(right), way * right.stride(0),
        gradient.data_ptr(), gradient.stride(0), 0 if other is None else begin(other), other_from,
    )  # fmt: skip


def bound(left, right, before, dtype):
    """How far a sum of k + 1 terms in any order, each by a fused step, may be off (Higham 2002)."""
    k, unit = left.shape[0] + 1, torch.finfo(dtype).eps / 2
    return k * unit / (1 - k * unit) * (left.abs().T @ right.abs() + before.abs()) * 1.01


@both
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outer_products(size, dtype):
    (m, n, k), guards = size, Guards()
    left = draw(guards, k, m, m + 3, dtype)
    right = draw(guards, k, n, n + 5, dtype)
    gradient = draw(guards, m, n, n + 2, dtype)
    before = gradient.double().clone()
    job = matrices.Product(dtype == torch.float64)
    add(job, m, n, k, left, right, gradient)
    job.run()
    guards.check()
    one, other = left.double(), right.double()
    limit = bound(one, other, before, dtype)
    if dtype == torch.float64:  # the twin is off as well
        limit = 2 * limit
    assert ((gradient.double() - before - one.T @ other).abs() <= limit).all()


@both
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_whole_numbers_are_exact(size, dtype):
    """Sums of whole numbers below 2**24 have no rounding at all."""
    (m, n, k), guards = size, Guards()
    left = draw(guards, k, m, m, dtype, whole_numbers=True)
    right = draw(guards, k, n, n + 1, dtype, whole_numbers=True)
    gradient = guards.zeros(m, n, dtype=dtype)
    job = matrices.Product(dtype == torch.float64)
    add(job, m, n, k, left, right, gradient)
    job.run()
    guards.check()
    assert torch.equal(gradient.double(), left.double().T @ right.double())


@both
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps, rows", [(1, 1), (1, 5), (4, 3), (7, 80)])
def test_states_before_each_step(steps, rows, reverse, dtype):
    """The right side is the states of the step before, from the last; then the initial state."""
    m, n, guards = 7, 19, Guards()
    every = steps * rows
    left = draw(guards, every, m, m, dtype, whole_numbers=True)
    states = draw(guards, every, n, n, dtype, whole_numbers=True)
    initial = draw(guards, rows, n, n, dtype, whole_numbers=True) + 1
    held = guards.copy(initial)
    gradient = guards.zeros(m, n, dtype=dtype)
    inside = every - rows
    if reverse:
        before = states[rows:]
        expected = torch.cat([before, initial])
    else:
        before = states[:inside]
        expected = torch.cat([initial, before])
    job = matrices.Product(dtype == torch.float64)
    add(job, m, n, every, left, before, gradient, held, inside, backwards=not reverse)
    job.run()
    guards.check()
    assert torch.equal(gradient.double(), left.double().T @ expected.double())


@both
@pytest.mark.parametrize("size", [(7, 65, 513), (13, 130, 1100), (5, 3, 7)], ids=str)
def test_a_sum_goes_on_where_it_stopped(size, dtype, monkeypatch):
    """Rows in parts, the last part first, have the bits of all rows from the last to the first."""
    monkeypatch.setattr(sharing, "ALONE_BELOW", 0)
    torch.set_num_threads(2)
    (m, n, k), guards = size, Guards()
    left, right = draw(guards, k, m, m, dtype), draw(guards, k, n, n, dtype)
    whole, upwards, in_parts = (guards.zeros(m, n, dtype=dtype) for _ in range(3))
    job = matrices.Product(dtype == torch.float64)
    add(job, m, n, k, left, right, whole, backwards=True)
    add(job, m, n, k, left, right, upwards)
    for first, stop in ((k - 3, k), (k // 3, k - 3), (0, k // 3)):
        part = slice(first, stop)
        add(job, m, n, stop - first, left[part], right[part], in_parts, backwards=True)
    job.run()
    guards.check()
    assert torch.equal(in_parts, whole)
    assert not torch.equal(upwards, whole)


@both
def test_several_jobs_and_threads(dtype, monkeypatch):
    """Each job is shared out; the bits are those of one thread."""
    monkeypatch.setattr(sharing, "ALONE_BELOW", 0)
    teams = []
    original = threads.launch

    def launch(*given):
        teams.append(given[-1])
        original(*given)

    monkeypatch.setattr(threads, "launch", launch)
    found = []
    for team in (1, 2, 3, 5):
        torch.set_num_threads(team)
        guards, gradients = Guards(), []
        job = matrices.Product(dtype == torch.float64)
        for m, n, k in SIZES:
            left, right = draw(guards, k, m, m, dtype), draw(guards, k, n, n, dtype)
            gradients.append(guards.zeros(m, n, dtype=dtype))
            add(job, m, n, k, left, right, gradients[-1])
        job.run()
        guards.check()
        found.append(gradients)
    assert teams == [1, 2, 3, 5]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_no_jobs_are_no_work(monkeypatch):
    def launch(*given):
        raise AssertionError("nothing is to be launched")

    monkeypatch.setattr(threads, "launch", launch)
    matrices.Product(False).run()


# --- packing -----------------------------------------------------------------------------------


def packed_by_hand(compiled, weights, lanes):
    """For each panel, operand and column: the vectors of all targets that read the operand."""
    numbers = []
    sizes = compiled.program.sizes
    for members in (group for groups in compiled.program.groups for group in groups):
        widths = [run.blocks for run in members.panels for _ in range(run.count)]
        units = sum(widths) * lanes
        assert 0 <= units - sizes[members.size] < lanes, "no vector of a panel is left empty"
        matrices = {
            product: padded(product, weights, units)
            for target in members.targets
            for product in target.products
        }
        first = 0
        for width in widths:
            stop = first + width * lanes
            for operand in members.operands:
                reading = [p for t in members.targets for p in t.products if p.inputs[1] == operand]
                columns = torch.stack([matrices[p][first:stop] for p in reading])
                numbers.append(columns.permute(2, 0, 1).reshape(-1))
            first = stop
    return torch.cat(numbers)


def padded(product, weights, units):
    """A product's matrix, with all of its zeros, and zeros for units behind the last."""
    matrix = weights[product.inputs[0].attribute("name")]
    matrix = torch.block_diag(*matrix.chunk(product.inputs[0].matrix.blocks))
    matrix = matrix if product.op == "matvec" else matrix.T
    return torch.cat([matrix, torch.zeros(units - len(matrix), matrix.shape[1])])


@pytest.mark.parametrize("team", [1, 3])
@both
@pytest.mark.parametrize(
    "name, heads, hidden",
    [("elman", 1, 5), ("gru_v1", 1, 33), ("lstm_projection", 1, 16), ("lstm", 2, 20),
     ("lstm", 1, 170), ("gru", 1, 40), ("odyssey_fgr", 1, 24), ("mgu", 1, 140)],
    ids=str,
)  # fmt: skip
def test_packing(name, heads, hidden, dtype, team):
    """Forward, and backward with transposed matrices; units behind the last are zeros."""
    torch.set_num_threads(team)
    poison()
    options = StepOptions(heads=heads)
    call = cast(make_call(CATALOGUE[name], options, Shape(1, 2, 3, hidden), stacked=True), dtype)
    weights = {
        each.parameter: call.weights[each.tensor][each.start : each.stop].float()
        for each in call.signature.slices
    }
    double = dtype == torch.float64
    made = kernels(call.signature.text, double, "")
    for compiled in (made.forward(True, False)[2], made.backward(True)[2]):
        place = compiled.weights.pack(call.weights, "weights")
        count = compiled.packed
        kind = ctypes.c_double if double else ctypes.c_float
        found = torch.tensor((kind * count).from_address(place)[:], dtype=dtype)
        expected = packed_by_hand(compiled, weights, 8 if double else 16)
        assert torch.equal(found.float(), expected)
