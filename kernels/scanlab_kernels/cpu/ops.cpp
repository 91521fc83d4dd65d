// The ops as torch sees them: schemas, gradients, and the instruction set they run on.
#include <atomic>

#include "cpu/autograd.h"
#include "cpu/ops.h"

namespace scanlab::mixer {

#define SCANLAB_DECLARE(isa) extern const Kernels kernels_##isa;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE)

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr char cure[] = "call inside scanlab.mixer.in_torch().";

// The fastest last.
std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> tables;
#define SCANLAB_TABLE(isa) \
    if (kernels_##isa.is_supported()) tables.push_back(&kernels_##isa);
    SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLE)
    return tables;
}

std::atomic<const Kernels*> chosen{supported().back()};

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

// A number that changes, but for a coincidence of 2^-64, with every weight that is another one or was changed in place.
int64_t fingerprint(const std::vector<Tensor>& weights) {
    // Where a few values lie, for changes that torch does not count: in rows and columns that differ.
    const auto each_sample = [](const Tensor& weight, const auto& act) {
        constexpr int sampled = 16;
        constexpr double golden = 0.6180339887498949;
        for (int sample = 1; sample <= sampled && weight.numel(); sample++) {
            int64_t index = int64_t((sample * golden - int(sample * golden)) * double(weight.numel())), offset = 0;
            for (int64_t axis = weight.dim() - 1; axis >= 0; axis--) {
                offset += index % weight.size(axis) * weight.stride(axis);
                index /= weight.size(axis);
            }
            act(static_cast<const char*>(weight.const_data_ptr()) + offset * weight.element_size());
        }
    };
    for (const Tensor& weight : weights) {
        expect_memory("a weight", weight);
        each_sample(weight, [](const char* value) { __builtin_prefetch(value); });  // nothing else reads what was packed
    }
    uint64_t hash = 0;
    const auto add = [&](uint64_t value) {
        hash = (hash ^ value) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    };
    for (const Tensor& weight : weights) {
        add(reinterpret_cast<uintptr_t>(weight.const_data_ptr()));
        add(weight._version());
        add(uint64_t(weight.scalar_type()));
        for (const int64_t extent : weight.sizes()) add(extent);
        for (const int64_t stride : weight.strides()) add(stride);
        each_sample(weight, [&, bytes = weight.element_size()](const char* value) {
            uint64_t bits[2] = {};  // complex128 has as many
            memcpy(bits, value, bytes);
            add(bits[0]), add(bits[1]);
        });
    }
    return int64_t(hash);
}

inline OptionalTensor given(const Tensor& tensor) { return tensor.defined() ? OptionalTensor(tensor) : std::nullopt; }

template <class Function>
auto op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

template <class... Arguments>
void refuse_tangents(const char* op, const Arguments&... arguments) {
    const auto refuse = [op](const auto& argument) {
        using Argument = std::decay_t<decltype(argument)>;
        if constexpr (std::is_same_v<Argument, Tensor>) refuse_tangent(argument, op, cure);
        else if constexpr (std::is_same_v<Argument, OptionalTensor>) refuse_tangent(value_of(argument), op, cure);
    };
    (refuse(arguments), ...);
}

struct ConvGrad : torch::autograd::Function<ConvGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                 const OptionalTensor& weight_reverse, const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx,
                                 const OptionalTensor& initial, bool silu, Transforms& aside) {
        const TransformExchange restored(aside);
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        context->save_for_backward({x, value_of(weight), value_of(bias), value_of(weight_reverse), value_of(bias_reverse),
                                    value_of(seq_idx), value_of(initial)});
        context->saved_data["silu"] = silu;
        auto [out, out_reverse] = forward_op.call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
        return {out, out_reverse};
    }
    static variable_list backward(AutogradContext* context, const variable_list& grads) {
        static const auto backward_op = op<decltype(conv_backward)>("scanlab_mixer::causal_conv1d_backward");
        const variable_list saved = context->get_saved_variables();
        const auto [grad_x, grad_weight, grad_bias, grad_weight_reverse, grad_bias_reverse, grad_initial] = backward_op.call(
            saved[1].defined() ? OptionalTensor(grads[0]) : std::nullopt, saved[3].defined() ? OptionalTensor(grads[1]) : std::nullopt,
            saved[0], given(saved[1]), given(saved[2]), given(saved[3]), given(saved[4]), given(saved[5]),
            given(saved[6]), context->saved_data["silu"].toBool());
        const auto if_given = [&](int index, const Tensor& gradient) { return saved[index].defined() ? gradient : Tensor(); };
        return {grad_x, if_given(1, grad_weight), if_given(2, grad_bias), if_given(3, grad_weight_reverse),
                if_given(4, grad_bias_reverse), Tensor(), if_given(6, grad_initial), Tensor(), Tensor()};
    }
};

Two conv_autograd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& weight_reverse,
                  const OptionalTensor& bias_reverse, const OptionalTensor& seq_idx, const OptionalTensor& initial, bool silu) {
    refuse_tangents("scanlab_mixer::causal_conv1d", x, weight, bias, weight_reverse, bias_reverse, initial);
    if (!torch::autograd::compute_requires_grad(x, value_of(weight), value_of(bias), value_of(weight_reverse),
                                                value_of(bias_reverse), value_of(initial))) {
        static const auto forward_op = op<decltype(conv)>("scanlab_mixer::causal_conv1d");
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op.call(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu);
    }
    Transforms aside;
    const TransformExchange away(aside);
    variable_list outputs = ConvGrad::apply(x, weight, bias, weight_reverse, bias_reverse, seq_idx, initial, silu, aside);
    return {outputs[0], outputs[1]};
}

struct NormGrad : torch::autograd::Function<NormGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight,
                                 const OptionalTensor& bias, double eps, bool centred, bool wide_total, Transforms& aside) {
        const TransformExchange restored(aside);
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
        if (!grad.defined()) return variable_list(8);
        return {as("hidden", grad), as("residual", grad), grad_weight, grad_bias.defined() ? as("bias", grad_bias) : Tensor(),
                Tensor(), Tensor(), Tensor(), Tensor()};
    }
};

Two add_norm_autograd(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight, const OptionalTensor& bias, double eps,
                      bool centred, bool wide_total) {
    refuse_tangents("scanlab_mixer::add_norm", hidden, residual, weight, bias);
    if (!torch::autograd::compute_requires_grad(hidden, value_of(residual), weight, value_of(bias))) {
        static const auto forward_op = op<decltype(add_norm)>("scanlab_mixer::add_norm");
        at::AutoDispatchBelowADInplaceOrView below;
        return forward_op.call(hidden, residual, weight, bias, eps, centred, wide_total);
    }
    Transforms aside;
    const TransformExchange away(aside);
    variable_list outputs = NormGrad::apply(hidden, residual, weight, bias, eps, centred, wide_total, aside);
    return {outputs[0], outputs[1]};
}

// A decoding step: it has no gradient, as upstream.
template <const char* name, class Function>
struct Step;
template <const char* name, class Result, class... Arguments>
struct Step<name, Result(Arguments...)> {
    static Result run(c10::DispatchKeySet keys, Arguments... arguments) {
        static const auto kernels = op<Result(Arguments...)>(name);
        refuse_tangents(name, arguments...);
        return kernels.redispatch(keys & c10::after_autograd_keyset, arguments...);
    }
};
constexpr char conv_step[] = "scanlab_mixer::causal_conv1d_update", scan_step[] = "scanlab_mixer::selective_state_update",
               whole_step[] = "scanlab_mixer::mixer_step";

}  // namespace

const Kernels& kernels_in_use() { return *chosen; }

const Products* products_in_use(at::ScalarType type) {
    const Kernels& kernels = kernels_in_use();
    if (type == at::kFloat) return &kernels.float32;
    if (type == at::kBFloat16 && kernels.bfloat16 && kernels.bfloat16->is_supported()) return kernels.bfloat16;
    return nullptr;
}

TORCH_LIBRARY(scanlab_mixer, library) {
    library.def("instruction_sets() -> str[]", &instruction_sets);
    library.def("use_instruction_set(str name) -> ()", &use_instruction_set);
    library.def("multiplies_bfloat16() -> bool", [] { return products_in_use(at::kBFloat16) != nullptr; });
    library.def("fingerprint(Tensor[] weights) -> int", &fingerprint);
    library.def("causal_conv1d(Tensor x, Tensor? weight, Tensor? bias, Tensor? weight_reverse, Tensor? bias_reverse,"
                " Tensor? seq_idx, Tensor? initial_states, bool silu) -> (Tensor, Tensor)");
    library.def("causal_conv1d_backward(Tensor? grad, Tensor? grad_reverse, Tensor x, Tensor? weight, Tensor? bias,"
                " Tensor? weight_reverse, Tensor? bias_reverse, Tensor? seq_idx, Tensor? initial_states, bool silu)"
                " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.def("causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, Tensor? cache_seqlens,"
                " Tensor? conv_state_indices, bool silu) -> Tensor");
    library.def("add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred,"
                " bool wide_total) -> (Tensor, Tensor)");
    library.def("add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight, float eps,"
                " bool centred) -> (Tensor, Tensor, Tensor)");
    library.def("selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D,"
                " Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, bool log_A) -> Tensor");
    library.def("thin_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    library.def("pack_linear(Tensor weight) -> Tensor");
    library.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt features) -> Tensor");
    library.def("before_scan(Tensor hidden, Tensor into, Tensor? into_bias, Tensor gate, Tensor? gate_bias, Tensor weight,"
                " Tensor? bias, Tensor select, Tensor step, Tensor? weight_reverse, Tensor? bias_reverse, Tensor? select_reverse,"
                " Tensor? step_reverse, SymInt rank, SymInt selected)"
                " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.def("mixer_step(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, Tensor? conv_bias,"
                " Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, Tensor A_log, Tensor D) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) {
    library.impl("causal_conv1d", &conv);
    library.impl("causal_conv1d_backward", &conv_backward);
    library.impl("causal_conv1d_update", &conv_update);
    library.impl("add_norm", &add_norm);
    library.impl("add_norm_backward", &add_norm_backward);
    library.impl("selective_state_update", &state_update);
    library.impl("thin_linear", &thin_linear);
    library.impl("pack_linear", &pack_linear);
    library.impl("packed_linear", &packed_linear);
    library.impl("before_scan", &before_scan);
    library.impl("mixer_step", &mixer_step);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("causal_conv1d", &Meta<conv_outputs>::run);
    library.impl("causal_conv1d_backward", &Meta<conv_gradients>::run);
    library.impl("causal_conv1d_update", &Meta<conv_update_output>::run);
    library.impl("add_norm", &Meta<norm_outputs>::run);
    library.impl("add_norm_backward", &Meta<norm_gradients>::run);
    library.impl("selective_state_update", &Meta<state_update_output>::run);
    library.impl("thin_linear", &Meta<thin_linear_output>::run);
    library.impl("pack_linear", &Meta<pack_linear_output>::run);
    library.impl("packed_linear", &Meta<packed_linear_output>::run);
    library.impl("before_scan", &Meta<before_scan_outputs>::run);
    library.impl("mixer_step", &Meta<mixer_step_output>::run);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("causal_conv1d", &conv_autograd);
    library.impl("add_norm", &add_norm_autograd);
    library.impl("causal_conv1d_backward", Undifferentiable<cure>::kernel());
    library.impl("add_norm_backward", Undifferentiable<cure>::kernel());
    library.impl("thin_linear", Undifferentiable<cure>::kernel());
    library.impl("pack_linear", Undifferentiable<cure>::kernel());
    library.impl("packed_linear", Undifferentiable<cure>::kernel());
    library.impl("before_scan", Undifferentiable<cure>::kernel());
    library.impl("causal_conv1d_update", &Step<conv_step, decltype(conv_update)>::run);
    library.impl("selective_state_update", &Step<scan_step, decltype(state_update)>::run);
    library.impl("mixer_step", &Step<whole_step, decltype(mixer_step)>::run);
}

}  // namespace scanlab::mixer
