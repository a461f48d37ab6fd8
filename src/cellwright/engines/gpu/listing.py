"""The emitted kernels of a cell as text, for people to read: ``cellwright cells lstm --triton``."""

from __future__ import annotations

import torch

from cellwright.engines.gpu import form as forms
from cellwright.engines.gpu.loops import Way, loops
from cellwright.engines.signature import Signature
from cellwright.errors import EngineError


def listing(signature: Signature) -> str:
    """The loops of a recurrence in training, float32, in the form chosen for an H100.

    What surrounds them (products with x before, gradients of weights behind) is torch's. Nothing
    is compiled, and no GPU is needed.

    Args:
        signature: of a layer.

    Raises:
        EngineError: the GPU engine cannot run the recurrence.

    Example:
        >>> import cellwright as cw
        >>> layer = cw.nn.Recurrent("gru", input_size=3, hidden_size=4, device="meta")
        >>> signature = layer.signature(0, lengths=False, reset=False, trace=False)
        >>> print(listing(signature).splitlines()[0])
        # gru, forward loop; form resident, the recurrent weights take 3 KiB, ...
    """
    if signature.spatial:
        name = signature.spec.name
        raise EngineError(f"the gpu engine cannot run cell {name}: @ is a convolution here")
    chosen = forms.choose(signature.text, torch.float32, forms.HOPPER)
    made = loops(signature.text, chosen.name, Way(torch.float32, interpreted=False))
    parts = {"forward": made.forward(keep=True), "backward": made.backward(need_x=True)[1]}
    head = f"form {chosen.name}, {chosen.reason}"
    return "\n\n".join(
        f"# {signature.spec.name}, {which} loop; {head}\n{loop.text}"
        for which, loop in parts.items()
    )
