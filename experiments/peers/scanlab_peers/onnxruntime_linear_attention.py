"""The scan as an ONNX graph with the operator com.microsoft.LinearAttention, run by ONNX Runtime."""

import functools

from scanlab.contract.cpu import threads_tunable
from scanlab_peers.onnxruntime import NEEDED, make
from scanlab_peers.peer import peer

# Each channel is a head whose keys are B, whose values are of width 1 and whose log decays are size A.
LINEAR_ATTENTION = """
    size_column = Unsqueeze(size, column)
    exponents = Mul(size_column, A)
    decay = Reshape(exponents, packed)
    key = Tile(B, repeats)
    past = ConstantOfShape<value = float[1] {{0}}>(states)
    read, present = com.microsoft.LinearAttention<
        q_num_heads = 1, kv_num_heads = {dim}, scale = 1.0, update_rule = "gated"
    >(C, key, drive, past, decay)
    last = Squeeze(present, column)
"""

backend = peer(
    "onnxruntime_linear_attention",
    "ONNX Runtime: its LinearAttention operator, since 1.32",
    106,
    __file__,
    NEEDED,
    functools.partial(make, LINEAR_ATTENTION),
    threads_tunable(),
)
