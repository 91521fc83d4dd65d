// One token through a Mamba mixer, from and to stored states, as a torch op on CPU tensors.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "causal_conv1d/call.h"
#include "linear/call.h"
#include "state_update/call.h"

namespace scanlab::mixer {

namespace {

// left weight^T.
void multiply(const Tensor& left, const Tensor& weight, const Tensor& to) {
    if (left.size(0) <= max_gemv_rows && left.dtype() != Dtype::float64) return multiply_gemv(left, weight, {}, to);
    const Tensor right = weight.strided({weight.size(1), weight.size(0)}, {weight.stride(1), weight.stride(0)});
    succeed(aoti_torch_cpu_mm_out(to.get(), left.get(), right.get()), "multiply matrices");
}

// All parts are checked before the first of them runs: a call that raises leaves both states as they were.
Tensor mixer_step(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                  const OptionalTensor& conv_bias, const Tensor& x_weight, const Tensor& dt_weight,
                  const OptionalTensor& dt_bias, const Tensor& A_log, const Tensor& D) {
    require(projected.dim() == 2 && dt_weight.dim() == 2 && A_log.dim() == 2,
            "projected (batch, 2 dim), dt_weight (dim, rank) and A_log (dim, state)");
    const int64_t dim = D.numel(), rank = dt_weight.size(1), states = A_log.size(1), batch = projected.size(0);
    const Dtype dtype = projected.dtype();
    expect("projected", projected, {batch, 2 * dim});
    expect("x_weight", x_weight, {rank + 2 * states, dim}, dtype);
    expect("dt_weight", dt_weight, {dim, rank}, dtype);
    for (const auto& [name, tensor] : {std::pair("conv_state", conv_state),
                                       {"state", state},
                                       {"conv_weight", conv_weight},
                                       {"A_log", A_log},
                                       {"D", D}})
        expect_memory(name, tensor);
    require(!Span(conv_state).meets(Span(state)), "conv_state and state overlap: give each memory of its own");
    // Both steps write a state, so each reads copies of inputs that lie in the other's.
    const auto copied = [&](const Tensor& tensor) { return apart_from(conv_state, apart_from(state, tensor)); };
    const Tensor input = copied(projected), select = copied(x_weight), step = copied(dt_weight);
    const Tensor u = empty_output({batch, dim}, dtype), selected = empty_output({batch, rank + 2 * states}, dtype),
                 dt = empty_output({batch, dim}, dtype), out = empty_output({batch, dim}, dtype);
    ConvUpdateCall convolution(input.narrow(1, 0, dim), conv_state, copied(conv_weight), copied(conv_bias), {}, {}, u,
                               true);
    StateUpdateCall update(state, u, dt, copied(A_log), selected.narrow(1, rank, states),
                           selected.narrow(1, rank + states, states), copied(D), input.narrow(1, dim, dim),
                           copied(dt_bias), out, true, {}, true);
    convolution.run();
    multiply(u, select, selected);
    multiply(selected.narrow(1, 0, rank), step, dt);
    update.run();
    return out;
}

}  // namespace

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "mixer_step(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, Tensor? conv_bias,"
        " Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor D) -> Tensor");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) { library.implement("mixer_step", boxed<mixer_step>); }

}  // namespace scanlab::mixer
