// The ops on torch's CPU tensors that multiply by weights, and those that are made of several.
#include "conv_call.h"

namespace scanlab::mixer {

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

namespace {
inline int64_t padded(int64_t features) { return (features + 15) / 16 * 16; }
inline int64_t panels(int64_t features) { return (features + panel_features - 1) / panel_features; }
// The elements of the depth that are multiplied at once, and to a multiple of which it is padded.
int64_t depth_step(at::ScalarType type) { return type == at::kBFloat16 ? 2 : 1; }
}  // namespace

Tensor pack_linear_output(const Tensor& weight) {
    const int64_t step = depth_step(weight.scalar_type());
    return at::empty_symint({(weight.sym_size(0) + 15) / 16 * 16 * ((weight.sym_size(1) + step - 1) / step * step)}, weight.options());
}

Tensor pack_linear(const Tensor& weight) {
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.device().is_cpu(), "weight (out, in) on the CPU");
    const int64_t features = weight.size(0), depth = weight.size(1), step = depth_step(weight.scalar_type());
    const int64_t steps = (depth + step - 1) / step, whole = steps * step, all = padded(features);
    const Tensor full = all == features && whole == depth ? weight : at::constant_pad_nd(weight, {0, whole - depth, 0, all - features});
    const Tensor packed = at::empty({all * whole}, weight.options());
    const auto pack = [&](int64_t first, int64_t count, int64_t pitch) {
        if (!count) return;
        const Tensor rows = full.narrow(0, first, count).view({count / pitch, pitch, steps, step});
        packed.narrow(0, first * whole, count * whole).view({count / pitch, steps, pitch, step}).copy_(rows.transpose(1, 2));
    };
    const int64_t rest = all % panel_features;
    pack(0, all - rest, panel_features);
    pack(all - rest, rest, rest);
    return packed;
}

namespace {
// What the kernel sees of a product whose x has rows.
PackedLinear product(const Tensor& x, const Tensor& packed, const Maybe& bias, int64_t features, const Tensor& out) {
    TORCH_CHECK_VALUE(x.size(-1) <= 1 || x.stride(-1) == 1, "the rows of x must be dense");
    TORCH_CHECK_TYPE(packed.scalar_type() == x.scalar_type(), "packed is ", packed.scalar_type(), ": must be ", x.scalar_type());
    const int64_t step = depth_step(x.scalar_type());
    expect("packed", packed, {padded(features) * ((x.size(-1) + step - 1) / step * step)});
    PackedLinear linear;
    linear.depth = x.size(-1), linear.features = features;
    linear.x = x.const_data_ptr(), linear.x_row = x.stride(-2);
    linear.packed = packed.const_data_ptr();
    if (bias) {
        expect("bias", *bias, {features});
        linear.bias = bias->const_data_ptr<float>();
    }
    linear.out = out.data_ptr(), linear.out_row = out.stride(-2);
    return linear;
}

const Products& products_of(const Tensor& x) {
    const Products* products = products_in_use(x.scalar_type());
    TORCH_CHECK_TYPE(products, x.scalar_type(), ": this machine has no packed products of it");
    return *products;
}
}  // namespace

Tensor packed_linear_output(const Tensor& x, const Tensor&, const Maybe&, c10::SymInt features) {
    c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
    shape.back() = features;
    return output(shape, x);
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, const Maybe& bias, c10::SymInt sym_features) {
    const int64_t features = sym_features.expect_int();
    TORCH_CHECK_VALUE(x.dim() >= 1 && x.device().is_cpu(), "x (..., in) on the CPU");
    const Tensor flat = x.reshape({-1, x.size(-1)}), rows = flat.stride(1) == 1 ? flat : flat.contiguous();
    const Maybe biases = bias ? Maybe(dense(*bias, at::kFloat)) : std::nullopt;
    const Tensor out = packed_linear_output(x, packed, bias, features);
    const PackedLinear linear = product(rows, packed, biases, features, out.view({-1, features}));
    const int64_t count = rows.size(0), steps = (count + row_step - 1) / row_step, columns = panels(features);
    const Products& products = products_of(x);
    const auto work = count * features * linear.depth / 16;
    if (steps >= 4 * at::get_num_threads())
        spread(steps, work, [&](int64_t begin, int64_t end) {
            products.packed_linear(linear, begin * row_step, std::min(end * row_step, count), 0, columns);
        });
    else
        spread(columns, work, [&](int64_t begin, int64_t end) { products.packed_linear(linear, 0, count, begin, end); });
    return out;
}

Six before_scan_outputs(const Tensor& x, const Tensor&, const Maybe&, const Tensor&, const Tensor&,
                const Maybe& weight_back, const Maybe&, const Maybe&, const Maybe&,
                c10::SymInt, c10::SymInt selected) {
    const auto like = [&](const c10::SymInt& features) { return output({x.sym_size(0), x.sym_size(1), features}, x); };
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
    const Products& products = products_of(x);
    spread(tasks, call.elements() * (all.size(2) / 16 + 1), [&](int64_t begin, int64_t end) { products.before_scan(before, begin, end); });
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
