"""The scan as an ONNX graph with the operator Scan, run by ONNX Runtime."""

import functools
from collections.abc import Callable

import torch

from scanlab.contract.cpu import threads_tunable
from scanlab.contract.problem import ScanInputs, ScanOutput, ScanProblem
from scanlab.contract.space import Config
from scanlab_peers.peer import peer, without_groups

# From size and drive (batch, length, dim), A, B and C to read (batch, length, dim) and last (batch, dim, state).
SCAN = """
    first = ConstantOfShape<value = float[1] {{0}}>(shape)
    last, read = Scan<num_scan_inputs = 4, scan_input_axes = [1, 1, 1, 1], scan_output_axes = [1], body = step (
        {h} h, {step} size_now, {step} drive_now, {coefficient} B_now, {coefficient} C_now
    ) => ({h} h_next, {step} y_now) {{
        size_column = Unsqueeze(size_now, column)
        exponent = Mul(size_column, A)
        decay = Exp(exponent)
        kept = Mul(decay, h)
        drive_column = Unsqueeze(drive_now, column)
        B_row = Unsqueeze(B_now, row)
        added = Mul(drive_column, B_row)
        h_next = Add(kept, added)
        C_column = Unsqueeze(C_now, column)
        y_column = MatMul(h_next, C_column)
        y_now = Squeeze(y_column, column)
    }}>(first, size, drive, B, C)
"""


def graph(problem: ScanProblem, recurrence: str) -> str:
    """Return the forward scan in ONNX's text form; time is the second axis of all tensors that vary over time."""
    batch, dim, length, state = problem.batch, problem.dim, problem.length, problem.state
    sequence, projection = f"float[{batch},{length},{dim}]", f"float[{batch},{length},{state}]"
    step, coefficient, h = f"float[{batch},{dim}]", f"float[{batch},{state}]", f"float[{batch},{dim},{state}]"
    inputs = [f"{sequence} u", f"{sequence} delta", f"float[{dim},{state}] A", f"{projection} B", f"{projection} C"]
    inputs += [f"float[{dim}] D"] * problem.has_D + [f"{sequence} z"] * problem.has_z
    inputs += [f"float[{dim}] bias"] * problem.has_delta_bias
    biased = "Add(delta, bias)" if problem.has_delta_bias else "Identity(delta)"
    size = "Softplus(biased)" if problem.delta_softplus else "Identity(biased)"
    skip = "skip = Mul(D, u) y = Add(read, skip)" if problem.has_D else "y = Identity(read)"
    gate = "open = Sigmoid(z) gate = Mul(z, open) out = Mul(y, gate)" if problem.has_z else "out = Identity(y)"
    shapes = {
        "shape": (batch, dim, state),
        "states": (batch, dim, state, 1),
        "packed": (batch, length, dim * state),
        "repeats": (1, 1, dim),
        "column": (-1,),
        "row": (1,),
    }
    constants = [f"int64[{len(each)}] {name} = {{{', '.join(map(str, each))}}}" for name, each in shapes.items()]
    return f"""
<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
scan ({", ".join(inputs)}) => ({sequence} out, {h} last)
<{", ".join(constants)}>
{{
    biased = {biased}
    size = {size}
    drive = Mul(size, u)
    {recurrence.format(h=h, step=step, coefficient=coefficient, dim=dim)}
    {skip}
    {gate}
}}
"""


def make(recurrence: str, problem: ScanProblem, config: Config) -> Callable[[ScanInputs], ScanOutput]:
    """Return the forward scan; each problem has a session of its own."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(config["threads"])
    model = onnx.parser.parse_model(graph(problem, recurrence))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def scan(inputs: ScanInputs) -> ScanOutput:
        u, delta, A, B, C, D, z, bias, _ = inputs
        B, C = without_groups(B).mT, without_groups(C).mT
        tensors = {"u": u.mT, "delta": delta.mT, "A": A, "B": B, "C": C, "D": D, "bias": bias}
        tensors["z"] = None if z is None else z.mT
        feeds = {name: values.contiguous().numpy() for name, values in tensors.items() if values is not None}
        out, last = session.run(None, feeds)
        return ScanOutput(torch.from_numpy(out).mT, torch.from_numpy(last))

    return scan


NEEDED = ("onnx", "onnxruntime")
backend = peer(
    "onnxruntime",
    "ONNX Runtime: its Scan operator",
    105,
    __file__,
    NEEDED,
    functools.partial(make, SCAN),
    threads_tunable(),
)
