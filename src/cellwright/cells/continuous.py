"""Cells that are discretised differential equations."""

from cellwright.lang import cell, next_state, sigmoid, tanh


@cell(state=("y", "z"))
def lem(x, y, z, W, U, b):
    """Long expressive memory. Rusch et al. 2022, Long expressive memory for sequence modeling.

    Two coupled states, each with a learnt time step a unit, step_z and step_y in (0, 1): the
    paper's largest step is 1 here. z is updated first, and y, the output, sees the new z.
    """
    step_z = sigmoid(W.step_z @ x + U.step_z @ y + b.step_z)
    step_y = sigmoid(W.step_y @ x + U.step_y @ y + b.step_y)
    z = (1 - step_z) * z + step_z * tanh(W.z @ x + U.z @ y + b.z)
    y = (1 - step_y) * y + step_y * tanh(W.y @ x + U.y @ z + b.y)
    return next_state(y=y, z=z, watch=dict(step_z=step_z, step_y=step_y))
