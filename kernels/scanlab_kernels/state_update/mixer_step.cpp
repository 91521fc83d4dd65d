// One token through a Mamba mixer, from and to stored states, as a torch op on CPU tensors.
#include <ATen/ops/mm.h>

#include "causal_conv1d/call.h"
#include "cpu/library_autograd.h"
#include "linear/call.h"
#include "state_update/call.h"

namespace scanlab::mixer {

namespace {

Tensor mixer_step_output(const Tensor& projected, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                         const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&, const Tensor& D) {
    return at::empty_symint({projected.sym_size(0), D.sym_size(0)}, projected.options());
}

// All parts are checked before the first of them runs: a call that raises leaves both states as they were.
Tensor mixer_step(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                  const OptionalTensor& conv_bias, const Tensor& x_weight, const Tensor& dt_weight,
                  const OptionalTensor& dt_bias, const Tensor& A_log, const Tensor& D) {
    const at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK_VALUE(dt_weight.dim() == 2 && A_log.dim() == 2, "dt_weight (dim, rank) and A_log (dim, state)");
    const int64_t dim = D.numel(), rank = dt_weight.size(1), states = A_log.size(1), batch = projected.size(0);
    expect("projected", projected, {batch, 2 * dim});
    expect("x_weight", x_weight, {rank + 2 * states, dim}, projected.scalar_type());
    expect("dt_weight", dt_weight, {dim, rank}, projected.scalar_type());
    TORCH_CHECK_VALUE(!Span(conv_state).meets(Span(state)),
                      "conv_state and state overlap: give each memory of its own");
    // Both steps write a state, so each reads what lies in the other's from copies.
    const auto copied = [&](const auto& tensor) { return apart_from(conv_state, apart_from(state, tensor)); };
    const Tensor input = copied(projected), select = copied(x_weight), step = copied(dt_weight);
    const Tensor u = at::empty({batch, dim}, projected.options()),
                 selected = at::empty({batch, rank + 2 * states}, projected.options());
    const Tensor dt = at::empty_like(u), out = at::empty_like(u);
    ConvUpdateCall convolution(input.narrow(1, 0, dim), conv_state, copied(conv_weight), copied(conv_bias),
                               std::nullopt, std::nullopt, u, true);
    StateUpdateCall update(state, u, dt, copied(A_log), selected.narrow(1, rank, states),
                           selected.narrow(1, rank + states, states), copied(D), input.narrow(1, dim, dim),
                           copied(dt_bias), out, true, std::nullopt, true);
    const auto multiply = [](const Tensor& left, const Tensor& weight, const Tensor& to) {
        const bool thin = left.size(0) <= max_gemv_rows && left.scalar_type() == at::kFloat;
        if (thin) multiply_gemv(left, weight, std::nullopt, to);
        else at::mm_out(const_cast<Tensor&>(to), left, weight.t());
    };
    convolution.run();
    multiply(u, select, selected);
    multiply(selected.narrow(1, 0, rank), step, dt);
    update.run();
    return out;
}

constexpr char step_name[] = "scanlab_mixer::mixer_step";

}  // namespace

TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
    library.def(
        "mixer_step(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, Tensor? conv_bias,"
        " Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor D) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) { library.impl("mixer_step", &mixer_step); }

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) { library.impl("mixer_step", &Meta<mixer_step_output>::run); }

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("mixer_step", &Step<step_name, decltype(mixer_step)>::run);
}

}  // namespace scanlab::mixer
