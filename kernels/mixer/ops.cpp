// The ops as torch sees them: schemas, outputs, gradients; and how their tasks are spread over torch's threads.
//
// An op's outputs are made by one function, which alone is the op for meta and fake tensors. The Python
// functions check what users pass and say what is wrong with it; here only what would touch foreign memory
// is refused.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <atomic>
#include <memory>

#include "mixer.h"

namespace scanlab::mixer {

extern const Kernels kernels_plain;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#endif

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- which instruction set

std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> tables;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        tables.push_back(&kernels_avx512);
    if (avx2) tables.push_back(&kernels_avx2);
#endif
    tables.push_back(&kernels_plain);
    return tables;
}

std::atomic<const Kernels*> chosen{supported().front()};

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* table : supported()) names.emplace_back(table->name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const Kernels* table : supported())
        if (name == table->name) {
            chosen = table;
            return;
        }
    TORCH_CHECK_VALUE(false, name, ": this machine has ", at::ArrayRef<std::string>(instruction_sets()));
}

// ---- tensors as the kernels want them

bool is_wide(std::initializer_list<const Tensor*> tensors) {
    for (const Tensor* tensor : tensors)
        if (tensor->defined() && tensor->scalar_type() == at::kDouble) return true;
    return false;
}
at::ScalarType arithmetic(bool wide) { return wide ? at::kDouble : at::kFloat; }

Type type_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kFloat: return Type::float32;
        case at::kDouble: return Type::float64;
        case at::kBFloat16: return Type::bfloat16;
        case at::kHalf: return Type::float16;
        default: TORCH_CHECK_TYPE(false, tensor.scalar_type(), ": must be float32, float64, bfloat16 or float16");
    }
}

void expect(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    TORCH_CHECK_VALUE(tensor.sizes() == shape, name, " ", tensor.sizes(), ": must be ", shape);
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), name, " is on ", tensor.device(), ": must be on the CPU");
}

Tensor value_of(const Maybe& tensor) { return tensor.has_value() ? *tensor : Tensor(); }
Maybe given(const Tensor& tensor) { return tensor.defined() ? Maybe(tensor) : std::nullopt; }

Tensor dense(const Tensor& tensor, at::ScalarType type) { return tensor.to(type).contiguous(); }
const void* pointer(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

// The kernels write through the pointers of outputs only.
Matrix matrix(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    const int64_t time = tensor.dim() == 3 ? tensor.stride(2) : 0;  // a single step may lack its axis
    return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), tensor.stride(0), tensor.stride(1), time};
}
Matrix rows_of(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), 0, tensor.stride(0), tensor.stride(1)};
}

Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

const int32_t* indices(const char* name, const Tensor& tensor, int64_t count) {
    if (!tensor.defined()) return nullptr;
    expect(name, tensor, {count});
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kInt && tensor.is_contiguous(), name, ": must be int32 and contiguous");
    return tensor.const_data_ptr<int32_t>();
}
void expect_rows(const char* name, const int32_t* rows, int64_t count, int64_t limit) {
    for (int64_t i = 0; rows && i < count; i++)
        TORCH_CHECK_INDEX(rows[i] < limit, name, "[", i, "]=", rows[i], ": the state has ", limit, " rows");
}

// Runs tasks on torch's threads, none of them for less than about 20 us of work.
template <class Run>
void spread(int64_t tasks, int64_t elements, const Run& run) {
    constexpr int64_t worth_a_thread = 32768;
    const int64_t grain = std::max<int64_t>(1, tasks * worth_a_thread / std::max<int64_t>(1, elements));
    at::parallel_for(0, tasks, grain, run);
}

// The sum of a list of rows, in its order.
Tensor sum_rows(const Tensor& rows) {
    Tensor sum = rows[0].clone();
    for (int64_t i = 1; i < rows.size(0); i++) sum.add_(rows[i]);
    return sum;
}

template <class Function>
auto op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

// ---- causal_conv1d

using Two = std::tuple<Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Two conv_outputs(const Tensor& x, const Maybe& weight, const Maybe&, const Maybe& weight_back, const Maybe&,
                 const Maybe&, const Maybe&, bool) {
    return {weight ? at::empty_like(x) : nothing(x), weight_back ? at::empty_like(x) : nothing(x)};
}

Six conv_gradients(const Maybe&, const Maybe&, const Tensor& x, const Maybe& weight, const Maybe& bias,
                   const Maybe& weight_back, const Maybe& bias_back, const Maybe&, const Maybe& initial, bool) {
    const auto like = [&](const Maybe& tensor) { return tensor ? at::empty_like(*tensor) : nothing(x); };
    return {at::empty_like(x), like(weight), like(bias), like(weight_back), like(bias_back), like(initial)};
}

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

Two conv(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& weight_back, const Maybe& bias_back,
         const Maybe& seq_idx, const Maybe& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    Two outputs = conv_outputs(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    for (int d = 0; d < call.conv.directions; d++)
        call.conv.direction[d].out = matrix(call.conv.direction[d].reverse ? std::get<1>(outputs) : std::get<0>(outputs));
    const Kernels& kernels = *chosen;
    spread(kernels.conv_tasks(call.conv), call.elements(), [&](int64_t begin, int64_t end) { kernels.conv(call.conv, begin, end); });
    return outputs;
}

Six conv_backward(const Maybe& grad, const Maybe& grad_back, const Tensor& x, const Maybe& weight, const Maybe& bias,
                  const Maybe& weight_back, const Maybe& bias_back, const Maybe& seq_idx, const Maybe& initial, bool silu) {
    ConvCall call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    Conv& conv = call.conv;
    Six gradients = conv_gradients(grad, grad_back, x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    auto& [grad_x, grad_weight, grad_bias, grad_weight_back, grad_bias_back, grad_initial] = gradients;
    const Kernels& kernels = *chosen;
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

struct ConvGrad : torch::autograd::Function<ConvGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& x, const Maybe& weight, const Maybe& bias,
                                 const Maybe& weight_back, const Maybe& bias_back, const Maybe& seq_idx,
                                 const Maybe& initial, bool silu) {
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({x, value_of(weight), value_of(bias), value_of(weight_back), value_of(bias_back),
                                    value_of(seq_idx), value_of(initial)});
        context->saved_data["silu"] = silu;
        auto [out, out_back] = forward_op.call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
        return {out, out_back};
    }
    static variable_list backward(AutogradContext* context, const variable_list& grads) {
        static const auto backward_op = op<decltype(conv_backward)>("scanlab_mixer::causal_conv1d_backward");
        const variable_list saved = context->get_saved_variables();
        const auto [grad_x, grad_weight, grad_bias, grad_weight_back, grad_bias_back, grad_initial] = backward_op.call(
            saved[1].defined() ? Maybe(grads[0]) : std::nullopt, saved[3].defined() ? Maybe(grads[1]) : std::nullopt,
            saved[0], given(saved[1]), given(saved[2]), given(saved[3]), given(saved[4]), given(saved[5]),
            given(saved[6]), context->saved_data["silu"].toBool());
        const auto if_given = [&](int index, const Tensor& gradient) { return saved[index].defined() ? gradient : Tensor(); };
        return {grad_x, if_given(1, grad_weight), if_given(2, grad_bias), if_given(3, grad_weight_back),
                if_given(4, grad_bias_back), Tensor(), if_given(6, grad_initial), Tensor()};
    }
};

Two conv_autograd(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& weight_back,
                  const Maybe& bias_back, const Maybe& seq_idx, const Maybe& initial, bool silu) {
    if (!torch::autograd::compute_requires_grad(x, value_of(weight), value_of(bias), value_of(weight_back),
                                                value_of(bias_back), value_of(initial))) {
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op.call(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    }
    variable_list outputs = ConvGrad::apply(x, weight, bias, weight_back, bias_back, seq_idx, initial, silu);
    return {outputs[0], outputs[1]};
}

// ---- causal_conv1d_update

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
    state.unsafeGetTensorImpl()->bump_version();
    const Kernels& kernels = *chosen;
    spread(kernels.conv_update_tasks(update), batch * dim * (slots + 2 * length), [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.conv_update_workspace_bytes(update));
        kernels.conv_update(update, begin, end, workspace.get());
    });
    return out;
}

// ---- add_norm

Two norm_outputs(const Tensor& hidden, const Maybe&, const Tensor&, const Maybe&, double, bool, bool wide_total) {
    const at::ScalarType type = wide_total && hidden.scalar_type() != at::kDouble ? at::kFloat : hidden.scalar_type();
    return {at::empty_like(hidden, at::MemoryFormat::Contiguous),
            at::empty_like(hidden, hidden.options().dtype(type), at::MemoryFormat::Contiguous)};
}
std::tuple<Tensor, Tensor, Tensor> norm_gradients(const Tensor&, const Maybe&, const Tensor& total, const Tensor& weight,
                                                  double, bool) {
    return {at::empty_like(total, at::MemoryFormat::Contiguous), at::empty_like(weight), at::empty_like(weight)};
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
    const Kernels& kernels = *chosen;
    spread((norm.rows + norm_rows - 1) / norm_rows, 2 * norm.rows * norm.dim, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.norm_workspace_bytes(norm));
        kernels.norm(norm, begin, end, workspace.get());
    });
    return outputs;
}

std::tuple<Tensor, Tensor, Tensor> add_norm_backward(const Tensor& grad_out, const Maybe& grad_total, const Tensor& total,
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
    const Kernels& kernels = *chosen;
    spread(tasks, 4 * norm.rows * norm.dim, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.norm_workspace_bytes(norm));
        kernels.norm_backward(norm, begin, end, workspace.get());
    });
    const Tensor sum = sum_rows(partials);
    grad_weight.copy_(sum[0]), grad_bias.copy_(sum[1]);
    return gradients;
}

struct NormGrad : torch::autograd::Function<NormGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& hidden, const Maybe& residual, const Tensor& weight,
                                 const Maybe& bias, double eps, bool centred, bool wide_total) {
        static const auto forward_op = op<decltype(add_norm)>("scanlab_mixer::add_norm");
        at::AutoDispatchBelowADInplaceOrView below;
        auto [out, total] = forward_op.call(hidden, residual, weight, bias, eps, centred, wide_total);
        context->set_materialize_grads(false);
        context->save_for_backward({total, weight});
        context->saved_data["eps"] = eps;
        context->saved_data["centred"] = centred;
        context->saved_data["hidden"] = hidden.scalar_type();
        if (residual) context->saved_data["residual"] = residual->scalar_type();
        if (bias) context->saved_data["bias"] = bias->scalar_type();
        return {out, total};
    }
    static variable_list backward(AutogradContext* context, const variable_list& grads) {
        static const auto backward_op = op<decltype(add_norm_backward)>("scanlab_mixer::add_norm_backward");
        const variable_list saved = context->get_saved_variables();
        const auto as = [&](const char* name, const Tensor& gradient) {
            const auto type = context->saved_data.find(name);
            return type == context->saved_data.end() ? Tensor() : gradient.to(type->second.toScalarType());
        };
        Tensor grad = grads[1], grad_weight, grad_bias;
        if (grads[0].defined())
            std::tie(grad, grad_weight, grad_bias) = backward_op.call(
                grads[0], given(grads[1]), saved[0], saved[1], context->saved_data["eps"].toDouble(),
                context->saved_data["centred"].toBool());
        if (!grad.defined()) return variable_list(7);
        return {as("hidden", grad), as("residual", grad), grad_weight, grad_bias.defined() ? as("bias", grad_bias) : Tensor(),
                Tensor(), Tensor(), Tensor()};
    }
};

Two add_norm_autograd(const Tensor& hidden, const Maybe& residual, const Tensor& weight, const Maybe& bias, double eps,
                      bool centred, bool wide_total) {
    if (!torch::autograd::compute_requires_grad(hidden, value_of(residual), weight, value_of(bias))) {
        static const auto forward_op = op<decltype(add_norm)>("scanlab_mixer::add_norm");
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op.call(hidden, residual, weight, bias, eps, centred, wide_total);
    }
    variable_list outputs = NormGrad::apply(hidden, residual, weight, bias, eps, centred, wide_total);
    return {outputs[0], outputs[1]};
}

// ---- selective_state_update

Tensor state_update_output(const Tensor&, const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Maybe&, const Maybe&, const Maybe&, bool, const Maybe&) {
    return at::empty_like(x);
}

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

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const Maybe& D, const Maybe& z, const Maybe& dt_bias, bool softplus, const Maybe& rows) {
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
    const Tensor out = state_update_output(state, x, dt, A, B, C, D, z, dt_bias, softplus, rows);
    update.wide = is_wide({&state, &x, &A}), update.softplus = softplus;
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
    state.unsafeGetTensorImpl()->bump_version();
    const Kernels& kernels = *chosen;
    spread(kernels.state_update_tasks(update), 2 * x.numel() * update.state, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.state_update_workspace_bytes(update));
        kernels.state_update(update, begin, end, workspace.get());
    });
    return out;
}

}  // namespace

TORCH_LIBRARY(scanlab_mixer, library) {
    library.def("instruction_sets() -> str[]", &instruction_sets);
    library.def("use_instruction_set(str name) -> ()", &use_instruction_set);
    library.def("causal_conv1d(Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_back, Tensor? bias_back,"
                " Tensor? seq_idx, Tensor? initial_states, bool silu) -> (Tensor, Tensor)");
    library.def("causal_conv1d_backward(Tensor? grad, Tensor? grad_back, Tensor x, Tensor? weight, Tensor? bias,"
                " Tensor? weight_back, Tensor? bias_back, Tensor? seq_idx, Tensor? initial_states, bool silu)"
                " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.def("causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens,"
                " Tensor? conv_state_indices, bool silu) -> Tensor");
    library.def("add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred,"
                " bool wide_total) -> (Tensor, Tensor)");
    library.def("add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight, float eps,"
                " bool centred) -> (Tensor, Tensor, Tensor)");
    library.def("selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D,"
                " Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) {
    library.impl("causal_conv1d", &conv);
    library.impl("causal_conv1d_backward", &conv_backward);
    library.impl("causal_conv1d_update", &conv_update);
    library.impl("add_norm", &add_norm);
    library.impl("add_norm_backward", &add_norm_backward);
    library.impl("selective_state_update", &state_update);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("causal_conv1d", &conv_outputs);
    library.impl("causal_conv1d_backward", &conv_gradients);
    library.impl("causal_conv1d_update", &conv_update_output);
    library.impl("add_norm", &norm_outputs);
    library.impl("add_norm_backward", &norm_gradients);
    library.impl("selective_state_update", &state_update_output);
}

// Decoding steps have no gradient, as upstream.
TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("causal_conv1d", &conv_autograd);
    library.impl("add_norm", &add_norm_autograd);
    library.impl("causal_conv1d_backward", torch::autograd::autogradNotImplementedFallback());
    library.impl("add_norm_backward", torch::autograd::autogradNotImplementedFallback());
    library.impl("causal_conv1d_update", torch::CppFunction::makeFallthrough());
    library.impl("selective_state_update", torch::CppFunction::makeFallthrough());
}

}  // namespace scanlab::mixer
