// The ops on torch's CPU tensors: outputs made, tensors described to the kernels, tasks spread over the threads.
#include "causal_conv1d/conv_call.h"

namespace scanlab::mixer {

Two conv_outputs(const Tensor& x, const OptionalTensor& weight, const OptionalTensor&, const OptionalTensor& weight_reverse, const OptionalTensor&,
                 const OptionalTensor&, const OptionalTensor&, bool) {
    return {weight ? output_like(x) : nothing(x), weight_reverse ? output_like(x) : nothing(x)};
}

Six conv_gradients(const OptionalTensor&, const OptionalTensor&, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                   const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor&, const OptionalTensor& initial, bool) {
    const auto like = [&](const OptionalTensor& tensor) { return tensor ? at::empty_like(*tensor) : nothing(x); };
    return {output_like(x), like(weight), like(bias), like(weight_reverse), like(bias_reverse), like(initial)};
}

Two conv(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse,
         const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    Two outputs = conv_outputs(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    for (int d = 0; d < call.conv.directions; d++)
        call.conv.direction[d].out = matrix(call.conv.direction[d].reverse ? std::get<1>(outputs) : std::get<0>(outputs));
    const Kernels& kernels = kernels_in_use();
    spread(kernels.conv_tasks(call.conv), call.elements(), [&](int64_t begin, int64_t end) { kernels.conv(call.conv, begin, end); });
    return outputs;
}

Six conv_backward(const OptionalTensor& grad, const OptionalTensor& grad_reverse, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    Conv& conv = call.conv;
    Six gradients = conv_gradients(grad, grad_reverse, x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    auto& [grad_x, grad_weight, grad_bias, grad_weight_reverse, grad_bias_reverse, grad_initial] = gradients;
    const Kernels& kernels = kernels_in_use();
    const int64_t shares = conv.batch * kernels.conv_chunks(conv);
    Tensor partials[2];
    for (int d = 0; d < conv.directions; d++) {
        const OptionalTensor& of = conv.direction[d].reverse ? grad_reverse : grad;
        TORCH_CHECK_VALUE(of, "a direction lacks its gradient");
        expect("grad", *of, x.sizes());
        conv.direction[d].out = matrix(*of);
        partials[d] = at::empty({std::max<int64_t>(1, shares), conv.dim, conv.width + 1}, x.options().dtype(arithmetic(conv.wide)));
        if (shares == 0) partials[d].zero_();
        conv.direction[d].partials = partials[d].data_ptr();
    }
    conv.grad_x = matrix(grad_x);
    if (initial) {
        if (conv.length == 0) grad_initial.zero_();
        conv.grad_initial = matrix(grad_initial);
    }
    spread(kernels.conv_tasks(conv), 3 * call.elements(), [&](int64_t begin, int64_t end) { kernels.conv_backward(conv, begin, end); });
    for (int d = 0; d < conv.directions; d++) {
        const Tensor sum = sum_rows(partials[d]);
        const bool reverse = conv.direction[d].reverse;
        (reverse ? grad_weight_reverse : grad_weight).copy_(sum.narrow(1, 0, conv.width));
        if (reverse ? bias_reverse.has_value() : bias.has_value())
            (reverse ? grad_bias_reverse : grad_bias).copy_(sum.select(1, conv.width));
    }
    return gradients;
}

Tensor conv_update_output(const Tensor& x, const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool) {
    return at::empty_like(x);
}

ConvUpdateCall::ConvUpdateCall(const Tensor& given_x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& positions, const OptionalTensor& rows, const Tensor& out, bool silu)
    : state(state) {
    const bool has_steps = given_x.dim() == 3;
    TORCH_CHECK_VALUE((given_x.dim() == 2 || has_steps) && state.dim() == 3 && weight.dim() == 2,
                      "x (batch, dim) or (batch, dim, steps), conv_state (rows, dim, slots) and weight (dim, width)");
    const int64_t batch = given_x.size(0), dim = given_x.size(1), length = has_steps ? given_x.size(2) : 1;
    const int64_t slots = state.size(2), width = weight.size(1);
    TORCH_CHECK_VALUE(width >= 1 && width <= max_width && slots >= width - 1, "width ", width, ": must be 1..", max_width,
                      " and at most one more than the ", slots, " slots of the state");
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

Tensor conv_update(const Tensor& x, const Tensor& state, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& positions,
                   const OptionalTensor& rows, bool silu) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = at::empty_like(x);
    ConvUpdateCall(x, state, weight, bias, positions, rows, out, silu).run();
    return out;
}

namespace {
Matrix rows_of(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), 0, tensor.stride(0), tensor.stride(1)};
}

Tensor flat(const Tensor& tensor) {
    const Tensor rows = tensor.reshape({-1, tensor.size(-1)});
    return rows.stride(1) == 1 ? rows : rows.contiguous();
}

Norm norm_call(const Tensor& like, const Tensor& weight, double eps, bool centred) {
    Norm norm;
    norm.dim = like.size(-1);
    norm.rows = norm.dim ? like.numel() / norm.dim : 0;
    norm.wide = is_wide({&like}), norm.centred = centred, norm.eps = eps;
    expect("weight", weight, {norm.dim});
    return norm;
}
}  // namespace

Two norm_outputs(const Tensor& hidden, const OptionalTensor&, const Tensor&, const OptionalTensor&, double, bool, bool wide_total) {
    const at::ScalarType type = wide_total && hidden.scalar_type() != at::kDouble ? at::kFloat : hidden.scalar_type();
    return {output(hidden.sym_sizes(), hidden), output(hidden.sym_sizes(), hidden, type)};
}
Three norm_gradients(const Tensor&, const OptionalTensor&, const Tensor& total, const Tensor& weight,
                                                  double, bool) {
    return {output(total.sym_sizes(), total), at::empty_like(weight), at::empty_like(weight)};
}

Two add_norm(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias, double eps,
             bool centred, bool wide_total) {
    TORCH_CHECK_VALUE(hidden.dim() >= 1, "hidden: must be (..., dim)");
    expect("hidden", hidden, hidden.sizes());
    Norm norm = norm_call(hidden, weight, eps, centred);
    const Tensor weights = dense(weight, arithmetic(norm.wide));
    Tensor biases, other;
    if (bias) {
        expect("bias", *bias, {norm.dim});
        biases = dense(*bias, arithmetic(norm.wide));
    }
    if (residual) {
        expect("residual", *residual, hidden.sizes());
        other = flat(*residual);
    }
    Two outputs = norm_outputs(hidden, residual, weight, bias, eps, centred, wide_total);
    if (norm.rows == 0) return outputs;
    const Tensor rows = flat(hidden);
    norm.weight = pointer(weights), norm.bias = pointer(biases);
    norm.hidden = rows_of(rows), norm.residual = rows_of(other);
    norm.out = rows_of(flat(std::get<0>(outputs))), norm.total = rows_of(flat(std::get<1>(outputs)));
    const Kernels& kernels = kernels_in_use();
    spread((norm.rows + norm_rows - 1) / norm_rows, 2 * norm.rows * norm.dim, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.norm_workspace_bytes(norm));
        kernels.norm(norm, begin, end, workspace.get());
    });
    return outputs;
}

Three add_norm_backward(const Tensor& grad_out, const OptionalTensor& grad_total, const Tensor& total,
                                                     const Tensor& weight, double eps, bool centred) {
    TORCH_CHECK_VALUE(total.dim() >= 1, "total: must be (..., dim)");
    expect("total", total, total.sizes());
    Norm norm = norm_call(total, weight, eps, centred);
    expect("grad_out", grad_out, total.sizes());
    auto gradients = norm_gradients(grad_out, grad_total, total, weight, eps, centred);
    auto& [grad, grad_weight, grad_bias] = gradients;
    if (norm.rows == 0) {
        grad_weight.zero_(), grad_bias.zero_();
        return gradients;
    }
    const Tensor weights = dense(weight, arithmetic(norm.wide)), outer = flat(grad_out), sums = flat(total);
    Tensor direct;
    if (grad_total) {
        expect("grad_total", *grad_total, total.sizes());
        direct = flat(*grad_total);
    }
    const int64_t tasks = (norm.rows + norm_rows - 1) / norm_rows;
    const Tensor partials = at::empty({tasks, 2, norm.dim}, weights.options());
    norm.weight = pointer(weights), norm.partials = partials.data_ptr();
    norm.total = rows_of(sums), norm.grad_out = rows_of(outer), norm.grad_total = rows_of(direct), norm.grad = rows_of(flat(grad));
    const Kernels& kernels = kernels_in_use();
    spread(tasks, 4 * norm.rows * norm.dim, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.norm_workspace_bytes(norm));
        kernels.norm_backward(norm, begin, end, workspace.get());
    });
    const Tensor sum = sum_rows(partials);
    grad_weight.copy_(sum[0]), grad_bias.copy_(sum[1]);
    return gradients;
}

Tensor state_update_output(const Tensor&, const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool, const OptionalTensor&, bool) {
    return at::empty_like(x);
}

namespace {
// Tensors without heads stand for tensors with one head.
struct Heads {
    bool given;

    int64_t stride(const Tensor& tensor, int64_t axis) const { return given ? tensor.stride(axis) : 0; }
    // (batch, [heads,] dim), or ([heads,] dim) for weights
    StateUpdate::PerBatch channels(const char* name, const Tensor& tensor, at::IntArrayRef shape, bool weights = false) const {
        if (!tensor.defined()) return {};
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), weights ? 0 : tensor.stride(0),
                stride(tensor, weights ? 0 : 1), tensor.stride(-1)};
    }
    // (rows, [heads,] dim, state)
    StateUpdate::PerState states(const char* name, const Tensor& tensor, at::IntArrayRef shape) const {
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), tensor.stride(0), stride(tensor, 1), tensor.stride(-2),
                tensor.stride(-1)};
    }
    // ([heads,] dim, state)
    StateUpdate::PerState rates(const Tensor& tensor, at::IntArrayRef shape) const {
        expect("A", tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), 0, stride(tensor, 0), tensor.stride(-2), tensor.stride(-1)};
    }
    // (batch, [groups,] state)
    StateUpdate::PerState projection(const char* name, const Tensor& tensor, at::IntArrayRef shape) const {
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), tensor.stride(0), stride(tensor, 1), 0, tensor.stride(-1)};
    }
};
}  // namespace

StateUpdateCall::StateUpdateCall(const Tensor& state, const Tensor& given_x, const Tensor& given_dt, const Tensor& given_A,
                                 const Tensor& given_B, const Tensor& given_C, const OptionalTensor& given_D, const OptionalTensor& given_z,
                                 const OptionalTensor& given_dt_bias, const Tensor& out, bool softplus, const OptionalTensor& given_rows, bool log_A)
    : state(state) {
    TORCH_CHECK_VALUE((state.dim() == 3 || state.dim() == 4) && given_x.dim() == state.dim() - 1 && given_B.dim() == given_x.dim(),
                      "state (rows, [heads,] dim, state), x (batch, [heads,] dim) and B (batch, [groups,] state)");
    const Heads heads{given_x.dim() == 3};
    update.batch = given_x.size(0), update.dim = given_x.size(-1), update.state = state.size(-1);
    if (heads.given) update.heads = given_x.size(1), update.groups = given_B.size(1);
    TORCH_CHECK_VALUE(update.groups > 0 && update.heads % update.groups == 0, update.groups, " groups do not divide ", update.heads, " heads");
    const at::DimVector own(given_x.sizes().begin() + 1, given_x.sizes().end());
    at::DimVector rates = own, all = own;
    rates.push_back(update.state), all.push_back(update.state);
    all.insert(all.begin(), given_rows ? state.size(0) : update.batch);
    at::DimVector projection = {update.batch, update.state};
    if (heads.given) projection.insert(projection.begin() + 1, update.groups);
    update.wide = is_wide({&state, &given_x, &given_A}), update.softplus = softplus, update.log_A = log_A;
    update.h = heads.states("state", state, all);
    expect_no_internal_overlap("state", state);
    const auto read = [&](const Tensor& tensor) -> const Tensor& { return kept.emplace_back(apart_from(state, tensor)); };
    const auto channels = [&](const char* name, const Tensor& tensor, at::IntArrayRef shape, bool weights = false) {
        if (!tensor.defined()) return StateUpdate::PerBatch{};
        expect(name, tensor, shape);
        return heads.channels(name, read(tensor), shape, weights);
    };
    update.x = channels("x", given_x, given_x.sizes());
    update.dt = channels("dt", given_dt, given_x.sizes());
    update.z = channels("z", value_of(given_z), given_x.sizes());
    update.out = heads.channels("out", out, given_x.sizes());
    update.D = channels("D", value_of(given_D), own, true);
    update.dt_bias = channels("dt_bias", value_of(given_dt_bias), own, true);
    expect("A", given_A, rates);
    expect("B", given_B, projection);
    expect("C", given_C, projection);
    update.A = heads.rates(read(given_A), rates);
    update.B = heads.projection("B", read(given_B), projection);
    update.C = heads.projection("C", read(given_C), projection);
    kept.push_back(value_of(given_rows));
    update.rows = indices("state_batch_indices", kept.back(), update.batch);
    expect_rows("state_batch_indices", update.rows, update.batch, state.size(0));
}

void StateUpdateCall::run() {
    state.unsafeGetTensorImpl()->bump_version();
    const Kernels& kernels = kernels_in_use();
    const int64_t elements = update.batch * update.heads * update.dim * update.state;
    spread(kernels.state_update_tasks(update), elements, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.state_update_workspace_bytes(update));
        kernels.state_update(update, begin, end, workspace.get());
    });
}

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias, bool softplus, const OptionalTensor& rows, bool log_A) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = at::empty_like(x);
    StateUpdateCall(state, x, dt, A, B, C, D, z, dt_bias, out, softplus, rows, log_A).run();
    return out;
}

}  // namespace scanlab::mixer
