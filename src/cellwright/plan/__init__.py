"""From a cell and a layer's options to the plan that every engine carries out."""

from cellwright.plan.build import Backward, Forward, Gradients, Loop, Outer, Plan, build
from cellwright.plan.dump import dump
from cellwright.plan.options import (
    GRADIENTS,
    SAVES,
    StepGraph,
    StepOptions,
    StreamSpec,
    layer_parameters,
    read_by_matrices,
    specialise,
)
from cellwright.plan.stages import Stage

__all__ = [
    "GRADIENTS", "SAVES", "Backward", "Forward", "Gradients", "Loop", "Outer", "Plan", "Stage",
    "StepGraph", "StepOptions", "StreamSpec", "build", "dump", "layer_parameters",
    "read_by_matrices", "specialise",
]  # fmt: skip
