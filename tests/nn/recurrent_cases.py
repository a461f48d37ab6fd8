"""What the tests of ``Recurrent`` share: layers with torch's weights, cells, random tensors."""

import torch

import cellwright as cw

# One or more of a kind: gates, a stage more, unlike sizes, a reduction, many states, no matrix
# in the loop.
CELLS = ["elman", "lstm", "gru_v1", "lstm_projection", "layer_norm_lstm", "slstm", "rhn", "sru"]


def randn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def make(cell, input_size=3, hidden_size=4, num_layers=1, dtype=torch.float64, **options):
    """A layer whose weights are all far from zero, so that nothing is without effect."""
    spec = cw.cells.get(cell) if isinstance(cell, str) else cell
    if spec.size_names and "sizes" not in options:
        options["sizes"] = {name: 2 * options.get("heads", 1) for name in spec.size_names}
    layer = cw.nn.Recurrent(spec, input_size, hidden_size, num_layers, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.6)
    return layer.eval()


def some_state(layer, batch, scale=0.5):
    """A state that is nowhere zero."""
    found = layer.initial_state(batch)
    return type(found)(*(torch.rand_like(each) * scale + 0.1 for each in found))


def from_torch(layer, **options):
    """The same layer as one of torch.nn's, on the same numbers: (W, U, b) from its weights."""
    name = {torch.nn.LSTM: "lstm", torch.nn.RNN: "elman"}[type(layer)]
    found = cw.nn.Recurrent(
        name, layer.input_size, layer.hidden_size, layer.num_layers,
        bidirectional=layer.bidirectional, batch_first=layer.batch_first, dropout=layer.dropout,
        dtype=layer.weight_hh_l0.dtype, **options,
    )  # fmt: skip
    with torch.no_grad():
        for number in range(layer.num_layers):
            for end in ("", "_reverse") if layer.bidirectional else ("",):
                suffix = f"l{number}{end}"
                getattr(found, f"W_{suffix}").copy_(getattr(layer, f"weight_ih_{suffix}"))
                getattr(found, f"U_{suffix}").copy_(getattr(layer, f"weight_hh_{suffix}"))
                biases = [getattr(layer, f"bias_{kind}_{suffix}") for kind in ("ih", "hh")]
                getattr(found, f"b_{suffix}").copy_(sum(biases))
    return found


def torch_lstm(*sizes, **options):
    return torch.nn.LSTM(*sizes, dtype=torch.float64, **options)


def close(found, expected, tolerance=1e-12):
    """Equal up to sums in another order, over the few steps of these tests."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
