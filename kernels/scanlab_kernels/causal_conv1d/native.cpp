// The convolution and one step of it as torch ops on CPU tensors.
#include "causal_conv1d/call.h"

namespace scanlab::mixer {

namespace {
// Of the forward direction and of the reverse one; empty where a direction is not asked for.
using ConvOutputs = std::tuple<Tensor, Tensor>;
// Of x, weight, bias, weight_reverse, bias_reverse and initial_states; empty where there is no such tensor.
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ConvOutputs conv(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                 const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    const ConvOutputs outputs = {weight ? empty_output_like(x) : nothing(x),
                                 weight_reverse ? empty_output_like(x) : nothing(x)};
    for (int d = 0; d < call.conv.directions; d++)
        call.conv.direction[d].out =
            matrix(call.conv.direction[d].reverse ? std::get<1>(outputs) : std::get<0>(outputs));
    const Kernels& kernels = kernels_in_use();
    spread(kernels.conv_tasks(call.conv), call.elements(),
           [&](int64_t begin, int64_t end) { kernels.conv(call.conv, begin, end); });
    return outputs;
}

ConvGradients conv_backward(const OptionalTensor& grad, const OptionalTensor& grad_reverse, const Tensor& x,
                            const OptionalTensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                            const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    Conv& conv = call.conv;
    const auto like = [&](const Tensor& tensor) { return tensor ? empty_output_like(tensor) : nothing(x); };
    const ConvGradients gradients = {like(x),      like(weight), like(bias), like(weight_reverse), like(bias_reverse),
                                     like(initial)};
    const auto& [grad_x, grad_weight, grad_bias, grad_weight_reverse, grad_bias_reverse, grad_initial] = gradients;
    const Kernels& kernels = kernels_in_use();
    const int64_t shares = conv.batch * kernels.conv_chunks(conv);
    Tensor partials[2];
    for (int d = 0; d < conv.directions; d++) {
        const Tensor& of = conv.direction[d].reverse ? grad_reverse : grad;
        require(bool(of), "a direction lacks its gradient");
        expect("grad", of, x.sizes());
        conv.direction[d].out = matrix(of);
        partials[d] = empty_output({std::max<int64_t>(1, shares), conv.dim, conv.width + 1}, arithmetic(conv.wide));
        if (shares == 0) partials[d].zero();
        conv.direction[d].partials = partials[d].data();
    }
    conv.grad_x = matrix(grad_x);
    if (initial) {
        if (conv.length == 0) grad_initial.zero();
        conv.grad_initial = matrix(grad_initial);
    }
    spread(kernels.conv_tasks(conv), 3 * call.elements(),
           [&](int64_t begin, int64_t end) { kernels.conv_backward(conv, begin, end); });
    for (int d = 0; d < conv.directions; d++) {
        const Tensor sum = sum_rows(partials[d]);
        const bool reverse = conv.direction[d].reverse;
        (reverse ? grad_weight_reverse : grad_weight).copy_from(sum.narrow(1, 0, conv.width));
        if (reverse ? bias_reverse : bias)
            (reverse ? grad_bias_reverse : grad_bias).copy_from(sum.strided({conv.dim}, {conv.width + 1}, conv.width));
    }
    return gradients;
}
}  // namespace

ConvUpdateCall::ConvUpdateCall(const Tensor& given_x, const Tensor& state, const Tensor& weight, const Tensor& bias,
                               const Tensor& positions, const Tensor& rows, const Tensor& out, bool silu)
    : state(state) {
    const bool has_steps = given_x.dim() == 3;
    require((given_x.dim() == 2 || has_steps) && state.dim() == 3 && weight.dim() == 2,
            "x (batch, dim) or (batch, dim, steps), conv_state (rows, dim, slots) and weight (dim, width)");
    const int64_t batch = given_x.size(0), dim = given_x.size(1), length = has_steps ? given_x.size(2) : 1;
    const int64_t slots = state.size(2), width = weight.size(1);
    require(width >= 1 && width <= max_width && slots >= width - 1, "width ", width, ": must be 1..", max_width,
            " and at most one more than the ", slots, " slots of the state");
    require(slots > 0 || !positions, "a circular state needs slots");
    expect("x", given_x, given_x.sizes());
    expect("weight", weight, {dim, width});
    expect("conv_state", state, {rows ? state.size(0) : batch, dim, slots});
    expect_no_internal_overlap("conv_state", state);
    update.batch = batch, update.dim = dim, update.length = length, update.slots = slots, update.width = int(width);
    update.wide = is_wide({&given_x}), update.silu = silu;
    x = apart_from(state, given_x);
    weights = apart_from(state, dense(weight, arithmetic(update.wide)));
    biases = apart_from(state, dense("bias", bias, {dim}, arithmetic(update.wide)));
    update.weight = weights.data(), update.bias = biases.data();
    update.positions = indices("cache_seqlens", positions, batch, this->positions);
    update.rows = indices("conv_state_indices", rows, batch, this->rows);
    expect_rows("conv_state_indices", update.rows, batch, state.size(0));
    update.x = matrix(x), update.state = matrix(state), update.out = matrix(out);
}

void ConvUpdateCall::run() {
    note_change(state);
    const Kernels& kernels = kernels_in_use();
    const int64_t elements = update.batch * update.dim * (update.slots + 2 * update.length);
    spread(kernels.conv_update_tasks(update), elements, kernels.conv_update_workspace_bytes(update),
           [&](int64_t begin, int64_t end, void* workspace) { kernels.conv_update(update, begin, end, workspace); });
}

namespace {
Tensor conv_update(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& positions, const OptionalTensor& rows, bool silu) {
    const Tensor out = empty_output_like(x);
    ConvUpdateCall(x, state, weight, bias, positions, rows, out, silu).run();
    return out;
}
}  // namespace

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "causal_conv1d(Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_reverse, Tensor? bias_reverse,"
        " Tensor? seq_idx, Tensor? initial_states, bool silu) -> (Tensor, Tensor)");
    library.define(
        "causal_conv1d_backward(Tensor? grad, Tensor? grad_reverse, Tensor x, Tensor? weight, Tensor? bias,"
        " Tensor? weight_reverse, Tensor? bias_reverse, Tensor? seq_idx, Tensor? initial_states, bool silu)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.define(
        "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens,"
        " Tensor? conv_state_indices, bool silu) -> Tensor");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) {
    library.implement("causal_conv1d", boxed<conv>);
    library.implement("causal_conv1d_backward", boxed<conv_backward>);
    library.implement("causal_conv1d_update", boxed<conv_update>);
}

}  // namespace scanlab::mixer
