"""The peephole LSTM as a Python loop over time, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PeepholeLSTM(nn.Module):
    """LSTM with peepholes; ``W @ x + b`` is computed for all steps before the loop.

    Shapes: W (4 H, I), U (4 H, H) and b (4 H) in the order i, f, g, o; V (3 H) in the order
    i, f, o.
    """

    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.W = nn.Parameter(torch.empty(4 * hidden_size, input_size))
        self.U = nn.Parameter(torch.empty(4 * hidden_size, hidden_size))
        self.V = nn.Parameter(torch.empty(3 * hidden_size))
        self.b = nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run over x (T, B, I) from a state of zeros; returns y (T, B, H) and the last c."""
        units = self.U.shape[1]
        h = c = x.new_zeros(x.shape[1], units)
        V_i, V_f, V_o = self.V.chunk(3)
        from_x = nn.functional.linear(x, self.W, self.b)
        outputs = []
        for t in range(x.shape[0]):
            i_pre, f_pre, g_pre, o_pre = (from_x[t] + h @ self.U.T).chunk(4, dim=1)
            i = torch.sigmoid(i_pre + V_i * c)
            f = torch.sigmoid(f_pre + V_f * c)
            c = f * c + i * torch.tanh(g_pre)
            o = torch.sigmoid(o_pre + V_o * c)
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), c
