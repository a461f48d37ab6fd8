"""Recurrent highway networks: several layers inside one step."""

from cellwright.lang import cell, next_state, sigmoid, tanh


def rhn_of_depth(depth, name=None):
    """Make a recurrent highway cell whose step is `depth` highway layers deep."""

    def step(x, s, W, U, b):
        """Recurrent highway network. Zilly et al. 2017, Recurrent highway networks.

        One step goes through several highway layers, each with matrices of its own; the
        input enters the first. t takes the new state, and the carry gate is coupled to it
        as 1 - t, as in the paper's experiments. rhn has three layers, the default of the
        official code; rhn_of_depth makes others. The paper writes h for the candidate g.
        """
        seen = {}
        for level in range(1, depth + 1):
            g, t = f"g{level}", f"t{level}"
            seen[g] = tanh(_pre(level, g, x, s, W, U, b))
            seen[t] = sigmoid(_pre(level, t, x, s, W, U, b))
            s = seen[g] * seen[t] + s * (1 - seen[t])
            if level < depth:
                seen[f"s{level}"] = s
        return next_state(s=s, watch=seen)

    step.__name__ = step.__qualname__ = name or f"rhn_of_depth_{depth}"
    return cell(state=("s",))(step)


def _pre(level, member, x, s, W, U, b):
    """The argument of a candidate or a gate: the first layer sees the input too."""
    if level > 1:
        return getattr(U, member) @ s + getattr(b, member)
    return getattr(W, member) @ x + getattr(U, member) @ s + getattr(b, member)


rhn = rhn_of_depth(3, name="rhn")
