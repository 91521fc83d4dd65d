// The ops on torch's CPU tensors that multiply by weights, and those that are made of several.
#include "causal_conv1d/conv_call.h"

namespace scanlab::mixer {

Tensor thin_linear_output(const Tensor& x, const Tensor& weight, const OptionalTensor&) {
    return at::empty_symint({x.sym_size(0), weight.sym_size(0)}, x.options());
}

namespace {
// Writes x weight^T + bias to `out`, which is dense.
void multiply_gemv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
    TORCH_CHECK_VALUE(x.dim() == 2 && weight.dim() == 2, "x (rows, in) and weight (out, in)");
    Gemv linear;
    linear.rows = x.size(0), linear.features = weight.size(0), linear.depth = x.size(1);
    expect("x", x, x.sizes(), at::kFloat);
    expect("weight", weight, {linear.features, linear.depth}, at::kFloat);
    if (bias) expect("bias", *bias, {linear.features}, at::kFloat);
    const Tensor rows = x.contiguous(), weights = weight.stride(1) == 1 ? weight : weight.contiguous();
    const Tensor biases = bias ? bias->contiguous() : Tensor();
    linear.bias = static_cast<const float*>(pointer(biases));
    linear.x = rows.const_data_ptr<float>(), linear.out = out.data_ptr<float>();
    linear.weight = weights.const_data_ptr<float>(), linear.weight_row = weights.stride(0);
    const Kernels& kernels = kernels_in_use();
    spread(kernels.thin_linear_tasks(linear), linear.features * linear.depth,
           [&](int64_t begin, int64_t end) { kernels.thin_linear(linear, begin, end); });
}
}  // namespace

Tensor thin_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
    const Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
    multiply_gemv(x, weight, bias, out);
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
    TORCH_CHECK_VALUE(weight.dim() == 2, "weight is ", weight.sizes(), ": must be (out, in)");
    expect("weight", weight, weight.sizes());
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
OptionalTensor as_read(const OptionalTensor& bias) { return bias ? OptionalTensor(dense(*bias, at::kFloat)) : std::nullopt; }

// What the kernel sees of a product whose x has rows.
PackedLinear product(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, int64_t features, const Tensor& out) {
    expect("x", x, x.sizes());
    TORCH_CHECK_VALUE(x.size(-1) <= 1 || x.stride(-1) == 1, "the rows of x must be dense");
    const int64_t step = depth_step(x.scalar_type());
    PackedLinear linear;
    linear.depth = x.size(-1), linear.features = features;
    linear.x = x.const_data_ptr(), linear.x_row = x.stride(-2);
    linear.packed_depth = (linear.depth + step - 1) / step * step;
    expect("packed", packed, {padded(features) * linear.packed_depth}, x.scalar_type());
    TORCH_CHECK_VALUE(packed.is_contiguous(), "packed has stride ", packed.strides(), ": must be contiguous");
    linear.packed = packed.const_data_ptr();
    if (bias) {
        expect("bias", *bias, {features}, at::kFloat);
        TORCH_CHECK_VALUE(bias->is_contiguous(), "bias has stride ", bias->strides(), ": must be contiguous");
        linear.bias = bias->const_data_ptr<float>();
    }
    if (out.defined()) linear.out = out.data_ptr(), linear.out_row = out.stride(-2);
    return linear;
}

const Products& products_of(const Tensor& x) {
    const Products* products = products_in_use(x.scalar_type());
    TORCH_CHECK_TYPE(products, x.scalar_type(), ": this machine has no packed products of it");
    return *products;
}
}  // namespace

Tensor packed_linear_output(const Tensor& x, const Tensor&, const OptionalTensor&, c10::SymInt features) {
    c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
    shape.back() = features;
    return output(shape, x);
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, c10::SymInt sym_features) {
    const int64_t features = sym_features.expect_int();
    TORCH_CHECK_VALUE(x.dim() >= 1 && features >= 0, "x is ", x.sizes(), " and features ", features, ": must be (..., in) and at least 0");
    const Tensor flat = x.reshape({-1, x.size(-1)}), rows = flat.stride(1) == 1 ? flat : flat.contiguous();
    const OptionalTensor biases = as_read(bias);
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

Seven before_scan_outputs(const Tensor& hidden, const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, const Tensor& weight,
                          const OptionalTensor&, const Tensor&, const Tensor&, const OptionalTensor& weight_reverse, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, c10::SymInt, c10::SymInt selected) {
    const c10::SymInt dim = weight.sym_size(0);
    const auto like = [&](const c10::SymInt& features) {
        return output({hidden.sym_size(0), hidden.sym_size(1), features}, hidden);
    };
    if (weight_reverse) return {like(dim), like(dim), like(selected), like(dim), like(dim), like(selected), like(dim)};
    return {like(dim), like(dim), like(selected), like(dim), nothing(hidden), nothing(hidden), nothing(hidden)};
}

namespace {
// Every sequence in pieces of `steps`.
std::vector<Piece> pieces_of(const Conv& conv, int64_t steps) {
    std::vector<Piece> pieces;
    for (int64_t batch = 0; batch < conv.batch; batch++)
        for (int64_t first = 0; first < conv.length; first += steps)
            pieces.push_back({batch, first, std::min(first + steps, conv.length)});
    return pieces;
}

// Groups of channels, whose number is that of the terms of a sum and so must not depend on the threads, and pieces of
// time enough to occupy those.
std::vector<Piece> cut(BeforeScan& before, int64_t threads) {
    constexpr int64_t max_groups = 4;
    const int64_t columns = panels(before.conv.dim);
    before.panels_each = (columns + max_groups - 1) / max_groups;
    before.groups = (columns + before.panels_each - 1) / before.panels_each;
    std::vector<Piece> pieces = pieces_of(before.conv, max_steps);
    const int64_t tasks = before.groups * int64_t(pieces.size());
    return tasks % threads == 0 || tasks >= 4 * threads ? pieces : pieces_of(before.conv, max_steps / 4);
}
}  // namespace

Seven before_scan(const Tensor& hidden, const Tensor& into, const OptionalTensor& into_bias, const Tensor& gate, const OptionalTensor& gate_bias,
                  const Tensor& weight, const OptionalTensor& bias, const Tensor& select, const Tensor& step, const OptionalTensor& weight_reverse,
                  const OptionalTensor& bias_reverse, const OptionalTensor& select_reverse, const OptionalTensor& step_reverse, c10::SymInt sym_rank,
                  c10::SymInt sym_selected) {
    TORCH_CHECK_VALUE(hidden.dim() == 3 && weight.dim() == 2, "hidden (batch, length, model) and weight (dim, width)");
    expect("hidden", hidden, hidden.sizes());
    const Seven outputs = before_scan_outputs(hidden, into, into_bias, gate, gate_bias, weight, bias, select, step, weight_reverse,
                                              bias_reverse, select_reverse, step_reverse, sym_rank, sym_selected);
    const auto& [z, u, all, delta, u_reverse, selected_reverse, delta_reverse] = outputs;
    const ConvCall call(u.mT(), weight, bias, weight_reverse, bias_reverse, std::nullopt, std::nullopt, true);
    const int64_t dim = weight.size(0), rank = sym_rank.expect_int(), selected = sym_selected.expect_int();
    TORCH_CHECK_VALUE(0 <= rank && rank <= selected, "rank ", rank, ": must be 0..", selected);
    const auto rows_of = [](const Tensor& tensor) { return tensor.view({-1, tensor.size(2)}); };
    const Tensor flat = hidden.reshape({-1, hidden.size(2)}), rows = flat.stride(1) == 1 ? flat : flat.contiguous();
    const OptionalTensor into_biases = as_read(into_bias), gate_biases = as_read(gate_bias);
    BeforeScan before;
    PackedLinear discretize_delta[2];
    before.conv = call.conv;
    before.into = product(rows, into, into_biases, dim, Tensor());
    before.gate = product(rows, gate, gate_biases, dim, rows_of(z));
    const auto direction = [&](int d, const Tensor& u, const Tensor& all, const Tensor& delta, const Tensor& to_all, const Tensor& to_delta) {
        before.conv.direction[d].out = matrix(u.mT());
        before.select[d] = product(rows_of(u), to_all, std::nullopt, selected, rows_of(all));
        discretize_delta[d] = product(rows_of(all).narrow(1, 0, rank), to_delta, std::nullopt, dim, rows_of(delta));
    };
    direction(0, u, all, delta, select, step);
    if (weight_reverse) {
        TORCH_CHECK_VALUE(select_reverse && step_reverse, "the direction back lacks its weights");
        direction(1, u_reverse, selected_reverse, delta_reverse, *select_reverse, *step_reverse);
    }
    const int64_t threads = at::get_num_threads(), length = before.conv.length, model = hidden.size(2);
    const std::vector<Piece> pieces = cut(before, threads);
    const int64_t count = int64_t(pieces.size()), at_once = std::min(count, std::max<int64_t>(4, threads));
    before.share_row = padded(selected);
    before.share_rows = std::min(at_once * max_steps, before.conv.batch * length);
    const Tensor shares = at::empty({before.conv.directions * before.groups * before.share_rows * before.share_row}, at::kFloat);
    before.shares = shares.data_ptr<float>();
    const Products& products = products_of(hidden);
    for (int64_t begin = 0; begin < count; begin += at_once) {
        const int64_t end = std::min(begin + at_once, count), some = end - begin, tasks = before.groups * some;
        const auto row = [&](int64_t piece) {
            return piece < count ? pieces[piece].batch * length + pieces[piece].first : before.conv.batch * length;
        };
        before.first_row = row(begin);
        const int64_t stop = row(end), all_rows = stop - before.first_row;
        // Groups first, so that a thread keeps its channels from here to the scan.
        spread(tasks, all_rows * dim * model / 8, [&](int64_t first, int64_t last) {
            for (int64_t task = first; task < last; task++)
                products.convolve_group(before, pieces[begin + task % some], task / some);
        });
        spread(all_rows, all_rows * selected * before.groups, [&](int64_t first, int64_t last) {
            products.add_shares(before, before.first_row + first, before.first_row + last);
        });
        spread(tasks, all_rows * dim * (rank / 16 + 1), [&](int64_t first, int64_t last) {
            for (int64_t task = first; task < last; task++) {
                const int64_t piece = begin + task % some, panel = task / some * before.panels_each;
                for (int d = 0; d < before.conv.directions; d++)
                    products.packed_linear(discretize_delta[d], row(piece), row(piece + 1), panel,
                                           std::min(panel + before.panels_each, panels(dim)));
            }
        });
    }
    return outputs;
}

Tensor mixer_step_output(const Tensor& projected, const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, const Tensor&,
                         const Tensor&, const OptionalTensor&, const Tensor&, const Tensor& D) {
    return at::empty_symint({projected.sym_size(0), D.sym_size(0)}, projected.options());
}

// All parts are checked before the first of them runs: a call that raises leaves both states as they were.
Tensor mixer_step(const Tensor& projected, const Tensor& conv_state, const Tensor& state, const Tensor& conv_weight,
                  const OptionalTensor& conv_bias, const Tensor& x_weight, const Tensor& dt_weight, const OptionalTensor& dt_bias,
                  const Tensor& A_log, const Tensor& D) {
    const at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK_VALUE(dt_weight.dim() == 2 && A_log.dim() == 2, "dt_weight (dim, rank) and A_log (dim, state)");
    const int64_t dim = D.numel(), rank = dt_weight.size(1), states = A_log.size(1), batch = projected.size(0);
    expect("projected", projected, {batch, 2 * dim});
    expect("x_weight", x_weight, {rank + 2 * states, dim}, projected.scalar_type());
    expect("dt_weight", dt_weight, {dim, rank}, projected.scalar_type());
    TORCH_CHECK_VALUE(!Span(conv_state).meets(Span(state)), "conv_state and state overlap: give each memory of its own");
    // Both steps write a state, so each reads what lies in the other's from copies.
    const auto copied = [&](const auto& tensor) { return apart_from(conv_state, apart_from(state, tensor)); };
    const Tensor input = copied(projected), select = copied(x_weight), step = copied(dt_weight);
    const Tensor u = at::empty({batch, dim}, projected.options()), selected = at::empty({batch, rank + 2 * states}, projected.options());
    const Tensor dt = at::empty_like(u), out = at::empty_like(u);
    ConvUpdateCall convolution(input.narrow(1, 0, dim), conv_state, copied(conv_weight), copied(conv_bias), std::nullopt,
                               std::nullopt, u, true);
    StateUpdateCall update(state, u, dt, copied(A_log), selected.narrow(1, rank, states), selected.narrow(1, rank + states, states),
                           copied(D), input.narrow(1, dim, dim), copied(dt_bias), out, true, std::nullopt, true);
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

}  // namespace scanlab::mixer
