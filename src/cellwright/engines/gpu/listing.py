"""The emitted kernels of a cell as text, for people to read: ``cellwright cells lstm --triton``."""

from __future__ import annotations

import torch

from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu.loops import Way, loops
from cellwright.engines.gpu.spatial import SpatialLoops
from cellwright.engines.signature import Signature

_WAY = Way(torch.float32, interpreted=False)


def listing(signature: Signature) -> str:
    """The loops of a recurrence in training, float32, in the form chosen for an H100.

    What surrounds them (products with x before, gradients of weights behind) is torch's. Where
    ``@`` is a convolution, that is torch's too, and there are the kernels behind each of them.
    Nothing is compiled, and no GPU is needed.

    Args:
        signature: of a layer.

    Example:
        >>> import cellwright as cw
        >>> layer = cw.nn.Recurrent("gru", input_size=3, hidden_size=4, device="meta")
        >>> signature = layer.signature(0, lengths=False, reset=False, trace=False)
        >>> print(listing(signature).splitlines()[0])
        # gru, forward loop; form resident, the recurrent weights take 3 KiB, ...
    """
    parts = _segments(signature) if signature.spatial else _loops(signature)
    return "\n\n".join(f"# {signature.spec.name}, {title}\n{text}" for title, text in parts.items())


def _loops(signature: Signature) -> dict[str, str]:
    chosen = forms.choose(signature.text, torch.float32, forms.HOPPER)
    made = loops(signature.text, chosen.name, _WAY)
    found = {"forward": made.forward(keep=True), "backward": made.backward(need_x=True)[1]}
    form = f"form {chosen.name}, {chosen.reason}"
    return {f"{which} loop; {form}": loop.text for which, loop in found.items()}


def _segments(signature: Signature) -> dict[str, str]:
    made = SpatialLoops(signature, _WAY, frozenset())
    inputs, step, _ = made.forward_chains(True)
    d_inputs, d_step = made.backward_chains(True)
    passes = {
        "forward: inputs": inputs, "forward: a step": step,
        "backward: a step": d_step, "backward: inputs": d_inputs,
    }  # fmt: skip
    return {
        f"{title}, part {number} of {len(chain)}": each.text
        for title, chain in passes.items()
        for number, each in enumerate(chain, start=1)
    }
