"""Cells and options that the tests of the plan go through."""

import cellwright as cw
from cellwright.plan import StepOptions

OPTIONS = {
    "plain": StepOptions(),
    "trace": StepOptions(trace=True),
    "heads": StepOptions(heads=2),
    "layer_norm": StepOptions(layer_norm=True),
    "recurrent_dropout": StepOptions(recurrent_dropout=True),
    "lengths": StepOptions(lengths=True),
    "reset": StepOptions(reset=True),
    "reset to a learnt state": StepOptions(reset=True, learn_initial_state=True),
    "grad_clip": StepOptions(grad_clip=0.5),
    "truncated": StepOptions(gradient="truncated"),
    "bf16": StepOptions(precision="bf16"),
}


def zoneout(spec, *, training):
    """Zoneout of every state of a cell."""
    return StepOptions(zoneout=tuple((s.name, 0.25) for s in spec.states), training=training)


def everything(spec):
    """All options at once."""
    return StepOptions(
        heads=2,
        layer_norm=True,
        recurrent_dropout=True,
        zoneout=tuple((s.name, 0.25) for s in spec.states),
        training=True,
        lengths=True,
        reset=True,
        learn_initial_state=True,
        grad_clip=0.5,
        trace=True,
    )


def options_for(spec):
    """Name -> options, those that depend on the cell included."""
    return OPTIONS | {
        "zoneout, training": zoneout(spec, training=True),
        "zoneout, evaluation": zoneout(spec, training=False),
        "everything": everything(spec),
    }


def catalogue():
    """Every cell of the catalogue."""
    return [cw.cells.get(name) for name in cw.cells.names()]
