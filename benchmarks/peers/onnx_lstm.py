"""An LSTM layer in ONNX Runtime (inference)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def inference(
    weights: dict[str, np.ndarray], x: np.ndarray, threads: int
) -> Callable[[], np.ndarray]:
    """A call that returns y (T, B, H).

    Args:
        weights: of one layer, under torch.nn's names: "weight_ih_l0" and so on, gates i, f, g, o.
        x: (T, B, I).
        threads: of the session.
    """
    units = weights["weight_hh_l0"].shape[1]
    constants = {
        "W": _reorder(weights["weight_ih_l0"])[None],
        "R": _reorder(weights["weight_hh_l0"])[None],
        "B": np.concatenate([_reorder(weights["bias_ih_l0"]), _reorder(weights["bias_hh_l0"])])[
            None
        ],
    }
    graph = helper.make_graph(
        [helper.make_node("LSTM", ["x", *constants], ["y"], hidden_size=units)],
        "lstm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [x.shape[0], 1, x.shape[1], units])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": x})[0][:, 0]


def _reorder(gates: np.ndarray) -> np.ndarray:
    """From torch's order i, f, g, o to ONNX's i, o, f, g."""
    i, f, g, o = np.split(gates, 4)
    return np.concatenate([i, o, f, g])
