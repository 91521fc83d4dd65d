// The convolution and one step of it as torch ops on CPU tensors.
#include "causal_conv1d/call.h"
#include "cpu/library_autograd.h"

namespace scanlab::mixer {

namespace {
// Of the forward direction and of the reverse one; empty where a direction is not asked for.
using ConvOutputs = std::tuple<Tensor, Tensor>;
// Of x, weight, bias, weight_reverse, bias_reverse and initial_states; empty where there is no such tensor.
using ConvGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ConvOutputs conv_outputs(const Tensor& x, const OptionalTensor& weight, const OptionalTensor&,
                         const OptionalTensor& weight_reverse, const OptionalTensor&, const OptionalTensor&,
                         const OptionalTensor&, bool) {
    return {weight ? output_like(x) : nothing(x), weight_reverse ? output_like(x) : nothing(x)};
}

ConvGradients conv_gradients(const OptionalTensor&, const OptionalTensor&, const Tensor& x,
                             const OptionalTensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                             const OptionalTensor&, const OptionalTensor& initial, bool) {
    const auto like = [&](const OptionalTensor& tensor) { return tensor ? at::empty_like(*tensor) : nothing(x); };
    return {output_like(x), like(weight), like(bias), like(weight_reverse), like(bias_reverse), like(initial)};
}

ConvOutputs conv(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                 const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                 const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    ConvOutputs outputs = conv_outputs(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
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
    ConvGradients gradients =
        conv_gradients(grad, grad_reverse, x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    auto& [grad_x, grad_weight, grad_bias, grad_weight_reverse, grad_bias_reverse, grad_initial] = gradients;
    const Kernels& kernels = kernels_in_use();
    const int64_t shares = conv.batch * kernels.conv_chunks(conv);
    Tensor partials[2];
    for (int d = 0; d < conv.directions; d++) {
        const OptionalTensor& of = conv.direction[d].reverse ? grad_reverse : grad;
        TORCH_CHECK_VALUE(of, "a direction lacks its gradient");
        expect("grad", *of, x.sizes());
        conv.direction[d].out = matrix(*of);
        partials[d] = at::empty({std::max<int64_t>(1, shares), conv.dim, conv.width + 1},
                                x.options().dtype(arithmetic(conv.wide)));
        if (shares == 0) partials[d].zero_();
        conv.direction[d].partials = partials[d].data_ptr();
    }
    conv.grad_x = matrix(grad_x);
    if (initial) {
        if (conv.length == 0) grad_initial.zero_();
        conv.grad_initial = matrix(grad_initial);
    }
    spread(kernels.conv_tasks(conv), 3 * call.elements(),
           [&](int64_t begin, int64_t end) { kernels.conv_backward(conv, begin, end); });
    for (int d = 0; d < conv.directions; d++) {
        const Tensor sum = sum_rows(partials[d]);
        const bool reverse = conv.direction[d].reverse;
        (reverse ? grad_weight_reverse : grad_weight).copy_(sum.narrow(1, 0, conv.width));
        if (reverse ? bias_reverse.has_value() : bias.has_value())
            (reverse ? grad_bias_reverse : grad_bias).copy_(sum.select(1, conv.width));
    }
    return gradients;
}
}  // namespace

Tensor conv_update_output(const Tensor& x, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, bool) {
    return at::empty_like(x);
}

ConvUpdateCall::ConvUpdateCall(const Tensor& given_x, const Tensor& state, const Tensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& positions, const OptionalTensor& rows,
                               const Tensor& out, bool silu)
    : state(state) {
    const bool has_steps = given_x.dim() == 3;
    TORCH_CHECK_VALUE((given_x.dim() == 2 || has_steps) && state.dim() == 3 && weight.dim() == 2,
                      "x (batch, dim) or (batch, dim, steps), conv_state (rows, dim, slots) and weight (dim, width)");
    const int64_t batch = given_x.size(0), dim = given_x.size(1), length = has_steps ? given_x.size(2) : 1;
    const int64_t slots = state.size(2), width = weight.size(1);
    TORCH_CHECK_VALUE(width >= 1 && width <= max_width && slots >= width - 1, "width ", width, ": must be 1..",
                      max_width, " and at most one more than the ", slots, " slots of the state");
    TORCH_CHECK_VALUE(slots > 0 || !positions, "a circular state needs slots");
    expect("x", given_x, given_x.sizes());
    expect("weight", weight, {dim, width});
    expect("conv_state", state, {rows ? state.size(0) : batch, dim, slots});
    expect_no_internal_overlap("conv_state", state);
    update.batch = batch, update.dim = dim, update.length = length, update.slots = slots, update.width = int(width);
    update.wide = is_wide({&given_x}), update.silu = silu;
    x = apart_from(state, given_x);
    weights = apart_from(state, dense(weight, arithmetic(update.wide)));
    biases = apart_from(state, dense("bias", bias, {dim}, arithmetic(update.wide)));
    this->positions = value_of(positions), this->rows = value_of(rows);
    update.weight = pointer(weights), update.bias = pointer(biases);
    update.positions = indices("cache_seqlens", this->positions, batch);
    update.rows = indices("conv_state_indices", this->rows, batch);
    expect_rows("conv_state_indices", update.rows, batch, state.size(0));
    update.x = matrix(x), update.state = matrix(state), update.out = matrix(out);
}

void ConvUpdateCall::run() {
    state.unsafeGetTensorImpl()->bump_version();
    const Kernels& kernels = kernels_in_use();
    const int64_t elements = update.batch * update.dim * (update.slots + 2 * update.length);
    spread(kernels.conv_update_tasks(update), elements, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.conv_update_workspace_bytes(update));
        kernels.conv_update(update, begin, end, workspace.get());
    });
}

namespace {
Tensor conv_update(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& positions, const OptionalTensor& rows, bool silu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = at::empty_like(x);
    ConvUpdateCall(x, state, weight, bias, positions, rows, out, silu).run();
    return out;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct ConvGrad : torch::autograd::Function<ConvGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& x, const OptionalTensor& weight,
                                 const OptionalTensor& bias, const OptionalTensor& weight_reverse,
                                 const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx,
                                 const OptionalTensor& initial, bool silu, Transforms& aside) {
        const TransformExchange restored(aside);
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({x, value_of(weight), value_of(bias), value_of(weight_reverse),
                                    value_of(bias_reverse), value_of(seq_idx), value_of(initial)});
        context->saved_data["silu"] = silu;
        auto [out, out_reverse] =
            forward_op.call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
        return {out, out_reverse};
    }
    static variable_list backward(AutogradContext* context, const variable_list& grads) {
        static const auto backward_op = op<decltype(conv_backward)>("scanlab_mixer::causal_conv1d_backward");
        const variable_list saved = context->get_saved_variables();
        const auto [grad_x, grad_weight, grad_bias, grad_weight_reverse, grad_bias_reverse, grad_initial] =
            backward_op.call(saved[1].defined() ? OptionalTensor(grads[0]) : std::nullopt,
                             saved[3].defined() ? OptionalTensor(grads[1]) : std::nullopt, saved[0], given(saved[1]),
                             given(saved[2]), given(saved[3]), given(saved[4]), given(saved[5]), given(saved[6]),
                             context->saved_data["silu"].toBool());
        const auto if_given = [&](int index, const Tensor& gradient) {
            return saved[index].defined() ? gradient : Tensor();
        };
        return {grad_x,
                if_given(1, grad_weight),
                if_given(2, grad_bias),
                if_given(3, grad_weight_reverse),
                if_given(4, grad_bias_reverse),
                Tensor(),
                if_given(6, grad_initial),
                Tensor(),
                Tensor()};
    }
};

ConvOutputs conv_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
                          const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    refuse_tangents("scanlab_mixer::causal_conv1d", x, weight, bias, weight_reverse, bias_reverse, initial);
    if (!torch::autograd::compute_requires_grad(x, value_of(weight), value_of(bias), value_of(weight_reverse),
                                                value_of(bias_reverse), value_of(initial))) {
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op.call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    }
    Transforms aside;
    const TransformExchange away(aside);
    variable_list outputs =
        ConvGrad::apply(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu, aside);
    return {outputs[0], outputs[1]};
}

constexpr char update_name[] = "scanlab_mixer::causal_conv1d_update";

}  // namespace

TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
    library.def(
        "causal_conv1d(Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_reverse, Tensor? bias_reverse,"
        " Tensor? seq_idx, Tensor? initial_states, bool silu) -> (Tensor, Tensor)");
    library.def(
        "causal_conv1d_backward(Tensor? grad, Tensor? grad_reverse, Tensor x, Tensor? weight, Tensor? bias,"
        " Tensor? weight_reverse, Tensor? bias_reverse, Tensor? seq_idx, Tensor? initial_states, bool silu)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.def(
        "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens,"
        " Tensor? conv_state_indices, bool silu) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) {
    library.impl("causal_conv1d", &conv);
    library.impl("causal_conv1d_backward", &conv_backward);
    library.impl("causal_conv1d_update", &conv_update);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("causal_conv1d", &Meta<conv_outputs>::run);
    library.impl("causal_conv1d_backward", &Meta<conv_gradients>::run);
    library.impl("causal_conv1d_update", &Meta<conv_update_output>::run);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("causal_conv1d", &conv_autograd);
    library.impl("causal_conv1d_backward", Undifferentiable<cure>::kernel());
    library.impl("causal_conv1d_update", &Step<update_name, decltype(conv_update)>::run);
}

}  // namespace scanlab::mixer
