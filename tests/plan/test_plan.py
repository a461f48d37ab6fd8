"""What every plan has to keep to, for every cell and every option."""

import pytest
from hypothesis import given, settings
from lang.programs import cell_of, programs
from plan.cases import OPTIONS, catalogue, everything, options_for

import cellwright as cw
from cellwright.ir import TABLE, Matrix, is_leaf, topological, verify
from cellwright.lang import mean, next_state, sigmoid, tanh
from cellwright.plan import StepOptions, build, specialise

CELLS = {spec.name: spec for spec in catalogue()}


def leaves(roots, *kinds):
    return {each for each in topological(roots) if is_leaf(each) and each.op in kinds}


def read_names(roots, kind):
    return {each.attribute("name") for each in leaves(roots, kind)}


def depends_on_state(roots):
    """Nodes of a loop that need the state before the step."""
    found = set()
    for each in topological(roots):
        if each.op == "state" or any(source in found for source in each.inputs):
            found.add(each)
    return found


def with_derivatives(roots):
    """Parameters on which the results depend smoothly: not by way of a comparison alone."""
    found, seen, stack = set(), set(), list(roots)
    while stack:
        each = stack.pop()
        if each in seen or (each.op != "parameter" and TABLE[each.op].derivative is None):
            continue
        seen.add(each)
        if each.op == "parameter":
            found.add(each.attribute("name"))
        stack.extend(each.inputs[1:] if each.op == "where" else each.inputs)
    return found


def check_stages(loop):
    """Operands of products are complete in an earlier stage; each value is computed once."""
    done, seen = set(), set()
    for number, stage in enumerate(loop.stages):
        assert stage.nodes, f"stage {number} is empty"
        inside = set(stage.nodes)
        assert len(inside) == len(stage.nodes), "computed twice in a stage"
        assert not inside & done, "computed in two stages"
        for each in (*stage.products, *stage.reductions):
            assert TABLE[each.op].kind in ("product", "reduction")
            for source in each.inputs:
                assert is_leaf(source) or source in done, f"{each!r} reads its own stage"
        ready = set(done) | {*stage.products, *stage.reductions}
        for each in stage.pointwise:
            assert TABLE[each.op].kind == "pointwise"
            assert all(is_leaf(source) or source in ready for source in each.inputs)
            ready.add(each)
        done |= inside
        later = [each for other in loop.stages[number + 1 :] for each in other.nodes]
        read_later = {source for each in later for source in each.inputs} & inside
        assert set(stage.stored) == read_later
        assert len(set(stage.stored)) == len(stage.stored)
        seen |= inside
    computed = {each for each in topological(loop.roots) if not is_leaf(each)}
    assert seen == computed, "exactly what the results need is computed"


def check_hoisting(plan):
    """Nothing that could be computed before or after the loop is left inside."""
    forward = plan.forward
    roots = forward.loop.roots
    assert not leaves(roots, "input"), "x is read inside the loop"
    late = depends_on_state(roots)
    for each in topological(roots):
        if TABLE[each.op].kind in ("product", "reduction"):
            assert each in late, f"{each!r} does not depend on the state"
    for each in topological([*forward.inputs.values(), *forward.once.values()]):
        assert each.op != "state"
    for each in topological(forward.once.values()):
        assert each.op not in ("input", "stream", "value")
    # What is hoisted is read, or returned.
    read = read_names([*roots, *forward.inputs.values()], "value")
    assert set(forward.once) | set(forward.inputs) == read
    assert not leaves(plan.backward.loop.roots, "input"), "dW is not summed up inside the loop"


def check_gathering(plan):
    """No sum inside the loop adds two terms that are known before it."""
    late = depends_on_state(plan.forward.loop.roots)
    for each in topological(plan.forward.loop.roots):
        if each.op == "add" and each in late:
            continue
        if each.op == "add" and not any(source.op == "stream" for source in topological([each])):
            raise AssertionError(f"{each!r} is state-independent and computed inside the loop")


def check_saving(plan):
    """The backward pass multiplies nothing that the forward pass has multiplied."""
    backward = plan.backward
    products = {
        each.op for each in topological(backward.loop.roots) if TABLE[each.op].kind == "product"
    }
    assert products <= {"matvec_transposed"}
    known = {*plan.forward.saved, *(f"next.{s.name}" for s in plan.spec.states), *plan.forward.once}
    # Hoisted values are computed again from what is saved for their own gradients.
    known |= set(plan.forward.saved_inputs)
    assert read_names(backward.loop.roots, "value") <= known
    # A saved value is one that the loop has, or that it reads anyway.
    for value in plan.forward.saved.values():
        assert value in topological(plan.forward.loop.roots)
        assert value not in plan.forward.next.values()
    assert len(set(plan.forward.saved.values())) == len(plan.forward.saved)
    # Every saved value is read.
    assert set(plan.forward.saved) <= read_names(backward.loop.roots, "value")


def check_completeness(plan):
    """Every state has a successor, every parameter that is read has a gradient."""
    states = [state.name for state in plan.spec.states]
    assert list(plan.forward.next) == states
    forward, backward = plan.forward, plan.backward
    assert set(backward.states) <= set(states)
    parts = (backward.parameters, backward.inputs, backward.once)
    found = {name for part in parts for name in part.vectors}
    found |= {outer.parameter for part in parts for outer in part.matrices}
    # What is hoisted has all of its gradients, though a comparison alone may read it.
    assert found >= with_derivatives(specialise(plan.spec, plan.options).roots)
    assert found <= {parameter.name for parameter in plan.parameters}
    if leaves(forward.inputs.values(), "input"):
        assert "x" in backward.inputs.values
    traced = set(forward.trace)
    assert traced == ({*states, *plan.spec.watch} if plan.options.trace else set())


def check_types(plan):
    """Each part passes the verifier with the leaves that it may read."""
    forward, backward = plan.forward, plan.backward
    verify(forward.once.values(), leaves=("parameter",))
    verify(forward.inputs.values(), leaves=("input", "parameter", "stream", "value"))
    inside = ("state", "parameter", "stream", "value")
    verify(forward.loop.roots, leaves=inside)
    verify(backward.loop.roots, leaves=(*inside, "cotangent"))
    after = ("input", "parameter", "stream", "value", "cotangent")
    verify(backward.inputs.roots, leaves=after)
    verify(backward.once.roots, leaves=("parameter", "cotangent"))
    for name, value in forward.next.items():
        (state,) = [each for each in plan.spec.states if each.name == name]
        assert value.size == state.size
    for name, value in backward.states.items():
        assert value.size == forward.next[name].size
    for part in (backward.parameters, backward.inputs, backward.once):
        for outer in part.matrices:
            (kind,) = {p.type for p in plan.parameters if p.name == outer.parameter}
            assert isinstance(kind, Matrix)
            assert (outer.delta.size, outer.operand.size) == (kind.rows, kind.columns)


def check(plan):
    check_types(plan)
    check_stages(plan.forward.loop)
    check_stages(plan.backward.loop)
    check_hoisting(plan)
    check_gathering(plan)
    check_saving(plan)
    check_completeness(plan)


@pytest.mark.parametrize("options", [*options_for(CELLS["lstm"])])
@pytest.mark.parametrize("name", CELLS)
def test_plans_of_the_catalogue(name, options):
    check(build(CELLS[name], options_for(CELLS[name])[options]))


def test_no_product_is_computed_again_after_the_loop():
    again = {
        name: sum(n.op == "matvec" for n in topological(build(spec).backward.inputs.roots))
        for name, spec in CELLS.items()
    }
    assert not {name: count for name, count in again.items() if count}


@settings(max_examples=40)
@given(programs())
def test_plans_of_random_cells(program):
    spec = cell_of(program)
    for options in (StepOptions(), StepOptions(trace=True), everything(spec)):
        check(build(spec, options))


# --- particular plans --------------------------------------------------------------------------


def loop_parameters(plan):
    return read_names(plan.forward.loop.roots, "parameter")


def test_all_of_an_lstms_input_is_one_sum_before_the_loop():
    plan = build(CELLS["lstm"])
    assert loop_parameters(plan) == {"U.i", "U.f", "U.g", "U.o"}
    assert not plan.forward.once
    assert len(plan.forward.inputs) == 4
    for gate, value in zip("ifgo", plan.forward.inputs.values(), strict=True):
        assert read_names([value], "parameter") == {f"W.{gate}", f"b.{gate}"}
        assert value.op == "add"
    assert {outer.parameter for outer in plan.backward.parameters.matrices} == {
        "U.i", "U.f", "U.g", "U.o",
    }  # fmt: skip
    assert {outer.parameter for outer in plan.backward.inputs.matrices} == {
        "W.i", "W.f", "W.g", "W.o",
    }  # fmt: skip


def test_hoisted_values_are_in_the_order_in_which_weights_are_stored():
    plan = build(CELLS["layer_norm_lstm"])
    order = [read_names([value], "parameter") for value in plan.forward.inputs.values()]
    stored = [parameter.name for parameter in plan.parameters]
    first = [min(stored.index(name) for name in names) for names in order if names]
    assert first == sorted(first)


def test_a_bias_written_last_is_hoisted_too():
    @cw.cell(state="h")
    def mine(x, h, W, U, V, b, k):
        return next_state(h=tanh((U @ h + (V * h + W @ x)) + (b + k)))

    plan = build(mine)
    assert loop_parameters(plan) == {"U", "V"}
    (value,) = plan.forward.inputs.values()
    assert read_names([value], "value") | read_names([value], "parameter") >= {"W"}
    assert "b" not in loop_parameters(plan)


def test_a_function_of_the_input_in_a_sum_is_computed_in_the_loop():
    """Before it there is the product alone, and behind it no gradient is left to compute."""
    plan = build(CELLS["mut1"])
    assert all(each.op in ("add", "matvec") for each in plan.forward.inputs.values())
    assert not plan.forward.saved_inputs
    assert all(is_leaf(each.delta) for each in plan.backward.inputs.matrices)


def test_a_sum_that_is_used_twice_stays_a_value_of_its_own():
    @cw.cell(state="h")
    def mine(x, h, W, U, b):
        s = W @ x + U @ h
        return next_state(h=tanh(s + b) * sigmoid(s))

    plan = build(mine)
    check(plan)
    matvecs = [n for n in topological(plan.forward.loop.roots) if n.op == "matvec"]
    assert len(matvecs) == 1


def test_what_follows_from_parameters_is_computed_once_a_call():
    @cw.cell(state="h")
    def mine(x, h, W, U, a):
        k = sigmoid(a) / (1 + mean(a))
        return next_state(h=k * h + (1 - k) * tanh(W @ x + U @ (k * h)))

    plan = build(mine)
    check(plan)
    assert loop_parameters(plan) == {"U"}
    assert plan.forward.once
    assert {name for name in plan.backward.once.vectors} == {"a"}


def test_a_product_on_parameters_is_computed_once_a_call():
    @cw.cell(state="h")
    def mine(x, h, W, A, a):
        return next_state(h=tanh(W @ x + h + A @ sigmoid(a)))

    plan = build(mine)
    check(plan)
    assert loop_parameters(plan) == set()
    assert [outer.parameter for outer in plan.backward.once.matrices] == ["A"]


def test_a_cell_whose_gates_see_the_input_alone_has_no_product_in_its_loop():
    for name in ("mingru", "minlstm", "sru", "indrnn", "cec"):
        plan = build(CELLS[name])
        for loop in (plan.forward.loop, plan.backward.loop):
            assert not any(stage.products for stage in loop.stages), name


@pytest.mark.parametrize(
    ("name", "stages"),
    [("elman", 1), ("lstm", 1), ("peephole_lstm", 1), ("gru", 1), ("gru_v1", 2), ("mgu", 2),
     ("lstm_projection", 2), ("rhn", 3), ("lem", 2), ("mingru", 1)],
)  # fmt: skip
def test_a_stage_for_each_product_on_a_computed_vector(name, stages):
    assert len(build(CELLS[name]).forward.loop.stages) == stages


def test_an_lstm_saves_no_more_than_its_gates():
    assert len(build(CELLS["lstm"]).forward.saved) <= 4
    assert len(build(CELLS["elman"]).forward.saved) == 0  # tanh' follows from h
    assert len(build(CELLS["gru"]).forward.saved) <= 4  # r, z, n and U.n @ h + b.hn


def test_a_plan_is_made_once():
    first = build(CELLS["lstm"], StepOptions(trace=True))
    assert build(CELLS["lstm"], StepOptions(trace=True)) is first
    assert build(CELLS["lstm"]) is build(CELLS["lstm"])
    assert build(CELLS["lstm"], StepOptions()) is not first


def test_an_option_that_is_off_leaves_no_mark():
    assert set(StepOptions().__dict__) == set(everything(CELLS["lstm"]).__dict__)
    plain = build(CELLS["lstm"], OPTIONS["plain"])
    assert plain.graph.streams == ()
    assert [p.name for p in plain.parameters] == [p.name for p in CELLS["lstm"].parameters]
    ops = {n.op for n in topological([*plain.forward.loop.roots, *plain.backward.loop.roots])}
    assert not ops & {"where", "clip_gradient", "maximum", "minimum"}


def test_one_function_of_what_is_at_hand_is_computed_again_and_no_chain_of_two():
    @cw.cell(state="h")
    def mine(x, h, W):
        return next_state(h=0.5 * (W @ x) * sigmoid(tanh(h)))

    plan = build(mine)
    saved = [value.op for value in plan.forward.saved.values()]
    assert saved.count("sigmoid") == 1
    assert "tanh" not in saved
    again = [each.op for each in topological(plan.backward.loop.roots)]
    assert again.count("tanh") == 1
    assert "sigmoid" not in again
