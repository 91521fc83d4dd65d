// The ops on torch's CPU tensors: outputs made, tensors described to the kernels, tasks spread over the threads.
#include "ops.h"

namespace scanlab::mixer {

Two conv_outputs(const Tensor& x, const Maybe& weight, const Maybe&, const Maybe& weight_back, const Maybe&,
                 const Maybe&, const Maybe&, bool) {
    return {weight ? at::empty_like(x) : nothing(x), weight_back ? at::empty_like(x) : nothing(x)};
}

Six conv_gradients(const Maybe&, const Maybe&, const Tensor& x, const Maybe& weight, const Maybe& bias,
                   const Maybe& weight_back, const Maybe& bias_back, const Maybe&, const Maybe& initial, bool) {
    const auto like = [&](const Maybe& tensor) { return tensor ? at::empty_like(*tensor) : nothing(x); };
    return {at::empty_like(x), like(weight), like(bias), like(weight_back), like(bias_back), like(initial)};
}

namespace {
// What the kernels see of a convolution, and the tensors that keep it alive.
struct ConvCall {
    Conv conv;
    Tensor ids, weights[2], biases[2];

    ConvCall(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& weight_back, const Maybe& bias_back,
             const Maybe& seq_idx, const Maybe& initial, bool silu) {
        TORCH_CHECK_VALUE(x.dim() == 3 && x.device().is_cpu(), "x: must be (batch, dim, length) on the CPU");
        TORCH_CHECK_VALUE(weight || weight_back, "a convolution needs a weight");
        const int64_t batch = x.size(0), dim = x.size(1), length = x.size(2), width = (weight ? *weight : *weight_back).size(-1);
        TORCH_CHECK_VALUE(width >= 1 && width <= max_width, "width ", width, ": must be 1..", max_width);
        conv.batch = batch, conv.dim = dim, conv.length = length, conv.width = int(width);
        conv.silu = silu;
        conv.wide = is_wide({&x});
        conv.directions = 0;
        add(weight, bias, false);
        add(weight_back, bias_back, true);
        conv.x = matrix(x);
        if (seq_idx) {
            expect("seq_idx", *seq_idx, {batch, length});
            TORCH_CHECK_TYPE(seq_idx->scalar_type() == at::kInt, "seq_idx: must be int32");
            ids = seq_idx->contiguous();
            conv.ids = ids.const_data_ptr<int32_t>();
        }
        if (initial) {
            expect("initial_states", *initial, {batch, dim, width - 1});
            TORCH_CHECK_VALUE(conv.directions == 1 && !seq_idx, "initial_states: for one direction without seq_idx only");
            conv.initial = matrix(*initial);
        }
    }

    void add(const Maybe& weight, const Maybe& bias, bool reverse) {
        if (!weight) return;
        const int d = conv.directions++;
        expect("weight", *weight, {conv.dim, conv.width});
        weights[d] = dense(*weight, arithmetic(conv.wide));
        if (bias) {
            expect("bias", *bias, {conv.dim});
            biases[d] = dense(*bias, arithmetic(conv.wide));
        }
        conv.direction[d].reverse = reverse;
        conv.direction[d].weight = pointer(weights[d]);
        conv.direction[d].bias = pointer(biases[d]);
    }

    int64_t elements() const { return conv.batch * conv.dim * conv.length * conv.directions; }
};
}  // namespace

Two conv(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& weight_back, const Maybe& bias_back,
         const Maybe& seq_idx, const Maybe& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    Two outputs = conv_outputs(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    for (int d = 0; d < call.conv.directions; d++)
        call.conv.direction[d].out = matrix(call.conv.direction[d].reverse ? std::get<1>(outputs) : std::get<0>(outputs));
    const Kernels& kernels = kernels_in_use();
    spread(kernels.conv_tasks(call.conv), call.elements(), [&](int64_t begin, int64_t end) { kernels.conv(call.conv, begin, end); });
    return outputs;
}

Six conv_backward(const Maybe& grad, const Maybe& grad_back, const Tensor& x, const Maybe& weight, const Maybe& bias,
                  const Maybe& weight_back, const Maybe& bias_back, const Maybe& seq_idx, const Maybe& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    Conv& conv = call.conv;
    Six gradients = conv_gradients(grad, grad_back, x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    auto& [grad_x, grad_weight, grad_bias, grad_weight_back, grad_bias_back, grad_initial] = gradients;
    const Kernels& kernels = kernels_in_use();
    const int64_t shares = conv.batch * kernels.conv_chunks(conv);
    Tensor partials[2];
    for (int d = 0; d < conv.directions; d++) {
        const Maybe& of = conv.direction[d].reverse ? grad_back : grad;
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
        (reverse ? grad_weight_back : grad_weight).copy_(sum.narrow(1, 0, conv.width));
        if (reverse ? bias_back.has_value() : bias.has_value())
            (reverse ? grad_bias_back : grad_bias).copy_(sum.select(1, conv.width));
    }
    return gradients;
}

Tensor conv_update_output(const Tensor& x, const Tensor&, const Tensor&, const Maybe&, const Maybe&, const Maybe&, bool) {
    return at::empty_like(x);
}

Tensor conv_update(const Tensor& x, const Tensor& state, const Tensor& weight, const Maybe& bias, const Maybe& positions,
                   const Maybe& rows, bool silu) {
    TORCH_CHECK_VALUE((x.dim() == 2 || x.dim() == 3) && state.dim() == 3 && x.device().is_cpu(),
                      "x (batch, dim) or (batch, dim, steps) and conv_state (rows, dim, slots) on the CPU");
    const int64_t batch = x.size(0), dim = x.size(1), length = x.dim() == 3 ? x.size(2) : 1;
    const int64_t slots = state.size(2), width = weight.size(-1);
    TORCH_CHECK_VALUE(width >= 1 && width <= max_width && slots >= width - 1, "width ", width, ": must be 1..", max_width,
                      " and at most one more than the ", slots, " slots of the state");
    TORCH_CHECK_VALUE(slots > 0 || !positions, "a circular state needs slots");
    expect("weight", weight, {dim, width});
    expect("conv_state", state, {rows ? state.size(0) : batch, dim, slots});
    ConvUpdate update;
    update.batch = batch, update.dim = dim, update.length = length, update.slots = slots, update.width = int(width);
    update.wide = is_wide({&x}), update.silu = silu;
    const Tensor weights = dense(weight, arithmetic(update.wide));
    Tensor biases;
    if (bias) {
        expect("bias", *bias, {dim});
        biases = dense(*bias, arithmetic(update.wide));
    }
    update.weight = pointer(weights), update.bias = pointer(biases);
    update.positions = indices("cache_seqlens", value_of(positions), batch);
    update.rows = indices("conv_state_indices", value_of(rows), batch);
    expect_rows("conv_state_indices", update.rows, batch, state.size(0));
    const Tensor out = conv_update_output(x, state, weight, bias, positions, rows, silu);
    update.x = matrix(x), update.state = matrix(state), update.out = matrix(out);
    claim(state, {x});
    const Kernels& kernels = kernels_in_use();
    spread(kernels.conv_update_tasks(update), batch * dim * (slots + 2 * length), [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.conv_update_workspace_bytes(update));
        kernels.conv_update(update, begin, end, workspace.get());
    });
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

Two norm_outputs(const Tensor& hidden, const Maybe&, const Tensor&, const Maybe&, double, bool, bool wide_total) {
    const at::ScalarType type = wide_total && hidden.scalar_type() != at::kDouble ? at::kFloat : hidden.scalar_type();
    return {at::empty_like(hidden, at::MemoryFormat::Contiguous),
            at::empty_like(hidden, hidden.options().dtype(type), at::MemoryFormat::Contiguous)};
}
Three norm_gradients(const Tensor&, const Maybe&, const Tensor& total, const Tensor& weight,
                                                  double, bool) {
    return {at::empty_like(total, at::MemoryFormat::Contiguous), at::empty_like(weight), at::empty_like(weight)};
}

Two add_norm(const Tensor& hidden, const Maybe& residual, const Tensor& weight, const Maybe& bias, double eps,
             bool centred, bool wide_total) {
    TORCH_CHECK_VALUE(hidden.dim() >= 1 && hidden.device().is_cpu(), "hidden: must be (..., dim) on the CPU");
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

Three add_norm_backward(const Tensor& grad_out, const Maybe& grad_total, const Tensor& total,
                                                     const Tensor& weight, double eps, bool centred) {
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
                           const Maybe&, const Maybe&, const Maybe&, bool, const Maybe&, bool) {
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

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const Maybe& D, const Maybe& z, const Maybe& dt_bias, bool softplus, const Maybe& rows, bool log_A) {
    TORCH_CHECK_VALUE((state.dim() == 3 || state.dim() == 4) && x.dim() == state.dim() - 1 && B.dim() == x.dim() && x.device().is_cpu(),
                      "state (rows, [heads,] dim, state), x (batch, [heads,] dim) and B (batch, [groups,] state) on the CPU");
    const Heads heads{x.dim() == 3};
    StateUpdate update;
    update.batch = x.size(0), update.dim = x.size(-1), update.state = state.size(-1);
    if (heads.given) update.heads = x.size(1), update.groups = B.size(1);
    TORCH_CHECK_VALUE(update.groups > 0 && update.heads % update.groups == 0, update.groups, " groups do not divide ", update.heads, " heads");
    const at::DimVector own(x.sizes().begin() + 1, x.sizes().end());
    at::DimVector rates = own, all = own;
    rates.push_back(update.state), all.push_back(update.state);
    all.insert(all.begin(), rows ? state.size(0) : update.batch);
    at::DimVector projection = {update.batch, update.state};
    if (heads.given) projection.insert(projection.begin() + 1, update.groups);
    const Tensor out = state_update_output(state, x, dt, A, B, C, D, z, dt_bias, softplus, rows, log_A);
    update.wide = is_wide({&state, &x, &A}), update.softplus = softplus, update.log_A = log_A;
    update.x = heads.channels("x", x, x.sizes());
    update.dt = heads.channels("dt", dt, x.sizes());
    update.z = heads.channels("z", value_of(z), x.sizes());
    update.out = heads.channels("out", out, x.sizes());
    update.D = heads.channels("D", value_of(D), own, true);
    update.dt_bias = heads.channels("dt_bias", value_of(dt_bias), own, true);
    update.h = heads.states("state", state, all);
    update.A = heads.rates(A, rates);
    update.B = heads.projection("B", B, projection);
    update.C = heads.projection("C", C, projection);
    update.rows = indices("state_batch_indices", value_of(rows), update.batch);
    expect_rows("state_batch_indices", update.rows, update.batch, state.size(0));
    claim(state, {x, dt, value_of(z), B, C});
    const Kernels& kernels = kernels_in_use();
    spread(kernels.state_update_tasks(update), x.numel() * update.state, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.state_update_workspace_bytes(update));
        kernels.state_update(update, begin, end, workspace.get());
    });
    return out;
}

Tensor thin_linear_output(const Tensor& x, const Tensor& weight, const Maybe&) {
    return at::empty_symint({x.sym_size(0), weight.sym_size(0)}, x.options());
}

Tensor thin_linear(const Tensor& x, const Tensor& weight, const Maybe& bias) {
    TORCH_CHECK_VALUE(x.dim() == 2 && weight.dim() == 2 && x.device().is_cpu(), "x (rows, in) and weight (out, in) on the CPU");
    ThinLinear linear;
    linear.rows = x.size(0), linear.features = weight.size(0), linear.depth = x.size(1);
    expect("weight", weight, {linear.features, linear.depth});
    const Tensor rows = x.contiguous(), weights = weight.stride(1) == 1 ? weight : weight.contiguous();
    Tensor biases;
    if (bias) {
        expect("bias", *bias, {linear.features});
        biases = bias->contiguous();
        linear.bias = biases.const_data_ptr<float>();
    }
    const Tensor out = at::empty({linear.rows, linear.features}, x.options());
    linear.x = rows.const_data_ptr<float>(), linear.out = out.data_ptr<float>();
    linear.weight = weights.const_data_ptr<float>(), linear.weight_row = weights.stride(0);
    const Kernels& kernels = kernels_in_use();
    spread(kernels.thin_linear_tasks(linear), linear.features * linear.depth,
           [&](int64_t begin, int64_t end) { kernels.thin_linear(linear, begin, end); });
    return out;
}

int64_t fingerprint(const std::vector<Tensor>& weights) {
    uint64_t hash = 0;
    const auto add = [&](uint64_t value) {
        hash = (hash ^ value) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    };
    for (const Tensor& weight : weights) {
        TORCH_CHECK_VALUE(weight.device().is_cpu(), "a weight is on ", weight.device(), ": must be on the CPU");
        add(reinterpret_cast<uintptr_t>(weight.const_data_ptr()));
        add(weight._version());
        add(uint64_t(weight.scalar_type()));
        for (const int64_t extent : weight.sizes()) add(extent);
        for (const int64_t stride : weight.strides()) add(stride);
        // A few values, for changes that torch does not count.
        constexpr int64_t sampled = 4;
        const size_t bytes = weight.element_size();
        for (int64_t sample = 0; sample < sampled && weight.numel(); sample++) {
            int64_t index = (2 * sample + 1) * weight.numel() / (2 * sampled), offset = 0;
            for (int64_t axis = weight.dim() - 1; axis >= 0; axis--) {
                offset += index % weight.size(axis) * weight.stride(axis);
                index /= weight.size(axis);
            }
            uint64_t bits[2] = {};  // complex128 has as many
            memcpy(bits, static_cast<const char*>(weight.const_data_ptr()) + offset * bytes, bytes);
            add(bits[0]), add(bits[1]);
        }
    }
    return int64_t(hash);
}

namespace {
inline int64_t padded(int64_t features) { return (features + 15) / 16 * 16; }
inline int64_t panels(int64_t features) { return (features + panel_features - 1) / panel_features; }
}  // namespace

Tensor pack_linear_output(const Tensor& weight) {
    return at::empty_symint({(weight.sym_size(0) + 15) / 16 * 16 * weight.sym_size(1)}, weight.options());
}

Tensor pack_linear(const Tensor& weight) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.device().is_cpu(), "weight (out, in) on the CPU");
    const int64_t features = weight.size(0), depth = weight.size(1);
    const Tensor packed = at::zeros({padded(features) * depth}, weight.options());
    for (int64_t first = 0; first < features; first += panel_features) {
        const int64_t here = std::min(panel_features, features - first), pitch = std::min(panel_features, padded(features - first));
        packed.narrow(0, first * depth, pitch * depth).view({depth, pitch}).narrow(1, 0, here).copy_(weight.narrow(0, first, here).t());
    }
    return packed;
}

namespace {
// What the kernel sees of a product whose x has rows.
PackedLinear product(const Tensor& x, const Tensor& packed, const Maybe& bias, int64_t features, const Tensor& out) {
    TORCH_CHECK_VALUE(x.size(-1) == 0 || x.stride(-1) == 1, "the rows of x must be dense");
    expect("packed", packed, {padded(features) * x.size(-1)});
    PackedLinear linear;
    linear.depth = x.size(-1), linear.features = features;
    linear.x = x.const_data_ptr<float>(), linear.x_row = x.stride(-2);
    linear.packed = packed.const_data_ptr<float>();
    if (bias) {
        expect("bias", *bias, {features});
        linear.bias = bias->const_data_ptr<float>();
    }
    linear.out = out.data_ptr<float>(), linear.out_row = out.stride(-2);
    return linear;
}
}  // namespace

Tensor packed_linear_output(const Tensor& x, const Tensor&, const Maybe&, c10::SymInt features) {
    c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
    shape.back() = features;
    return at::empty_symint(shape, x.options());
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, const Maybe& bias, c10::SymInt sym_features) {
    const int64_t features = sym_features.expect_int();
    TORCH_CHECK_VALUE(x.dim() >= 1 && x.device().is_cpu(), "x (..., in) on the CPU");
    const Tensor flat = x.reshape({-1, x.size(-1)}), rows = flat.stride(1) == 1 ? flat : flat.contiguous();
    const Maybe biases = bias ? Maybe(bias->contiguous()) : std::nullopt;
    const Tensor out = packed_linear_output(x, packed, bias, features);
    const PackedLinear linear = product(rows, packed, biases, features, out.view({-1, features}));
    const int64_t count = rows.size(0), steps = (count + row_step - 1) / row_step, columns = panels(features);
    const Kernels& kernels = kernels_in_use();
    const auto work = count * features * linear.depth / 16;
    if (steps >= 4 * at::get_num_threads())
        spread(steps, work, [&](int64_t begin, int64_t end) {
            kernels.packed_linear(linear, begin * row_step, std::min(end * row_step, count), 0, columns);
        });
    else
        spread(columns, work, [&](int64_t begin, int64_t end) { kernels.packed_linear(linear, 0, count, begin, end); });
    return out;
}

Six before_scan_outputs(const Tensor& x, const Tensor&, const Maybe&, const Tensor&, const Tensor&,
                const Maybe& weight_back, const Maybe&, const Maybe&, const Maybe&,
                c10::SymInt, c10::SymInt selected) {
    const auto like = [&](const c10::SymInt& features) { return at::empty_symint({x.sym_size(0), x.sym_size(1), features}, x.options()); };
    const c10::SymInt dim = x.sym_size(2);
    if (weight_back) return {like(dim), like(selected), like(dim), like(dim), like(selected), like(dim)};
    return {like(dim), like(selected), like(dim), nothing(x), nothing(x), nothing(x)};
}

Six before_scan(const Tensor& x, const Tensor& weight, const Maybe& bias, const Tensor& select, const Tensor& step,
                const Maybe& weight_back, const Maybe& bias_back, const Maybe& select_back, const Maybe& step_back,
                c10::SymInt rank, c10::SymInt selected) {
    TORCH_CHECK_VALUE(x.dim() == 3, "x: must be (batch, length, dim)");
    const ConvCall call(x.mT(), weight, bias, weight_back, bias_back, std::nullopt, std::nullopt, true);
    BeforeScan before;
    before.conv = call.conv;
    const Six outputs = before_scan_outputs(x, weight, bias, select, step, weight_back, bias_back, select_back, step_back, rank, selected);
    const auto direction = [&](int d, const Tensor& u, const Tensor& all, const Tensor& delta, const Tensor& to_all, const Tensor& to_delta) {
        const int64_t features = all.size(2), depth = rank.expect_int();
        const Tensor low_rank = all.view({-1, features}).narrow(1, 0, depth);
        before.conv.direction[d].out = matrix(u.mT());
        before.select[d] = product(u.view({-1, u.size(2)}), to_all, std::nullopt, features, all.view({-1, features}));
        before.step[d] = product(low_rank, to_delta, std::nullopt, u.size(2), delta.view({-1, u.size(2)}));
    };
    const auto& [u, all, delta, u_back, all_back, delta_back] = outputs;
    direction(0, u, all, delta, select, step);
    if (weight_back) {
        TORCH_CHECK_VALUE(select_back && step_back, "the direction back lacks its weights");
        direction(1, u_back, all_back, delta_back, *select_back, *step_back);
    }
    const int64_t tasks = x.size(0) * ((x.size(1) + row_step - 1) / row_step);
    const Kernels& kernels = kernels_in_use();
    spread(tasks, call.elements() * (all.size(2) / 16 + 1), [&](int64_t begin, int64_t end) { kernels.before_scan(before, begin, end); });
    return outputs;
}

Tensor mixer_step_output(const Tensor& projected, const Tensor&, const Tensor&, const Tensor&, const Maybe&, const Tensor&,
                         const Tensor&, const Maybe&, const Tensor&, const Tensor& D) {
    return at::empty_symint({projected.sym_size(0), D.sym_size(0)}, projected.options());
}

Tensor mixer_step(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                  const Maybe& conv_bias, const Tensor& x_weight, const Tensor& dt_weight, const Maybe& dt_bias,
                  const Tensor& A_log, const Tensor& D) {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t dim = D.numel(), rank = dt_weight.size(1), states = A_log.size(1);
    const Tensor x = projected.narrow(1, 0, dim), z = projected.narrow(1, dim, dim);
    const Tensor u = conv_update(x, conv_state, conv_weight, conv_bias, std::nullopt, std::nullopt, true);
    const auto product = [](const Tensor& left, const Tensor& weight) {
        const bool thin = left.size(0) <= most_thin_rows && left.scalar_type() == at::kFloat;
        return thin ? thin_linear(left, weight, std::nullopt) : at::linear(left, weight);
    };
    const Tensor selected = product(u, x_weight);
    const Tensor dt = product(selected.narrow(1, 0, rank), dt_weight);
    const Tensor B = selected.narrow(1, rank, states), C = selected.narrow(1, rank + states, states);
    return state_update(state, u, dt, A_log, B, C, D, z, dt_bias, true, std::nullopt, true);
}

}  // namespace scanlab::mixer
