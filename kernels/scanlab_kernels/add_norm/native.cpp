// Residual add and norm as a torch op on CPU tensors.
#include "add_norm/native.h"

#include "cpu/library.h"
#include "cpu/library_autograd.h"

namespace scanlab::mixer {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The normalised sum, and the sum.
using NormOutputs = std::tuple<Tensor, Tensor>;
// Of the sum, weight and bias.
using NormGradients = std::tuple<Tensor, Tensor, Tensor>;

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

NormOutputs norm_outputs(const Tensor& hidden, const OptionalTensor&, const Tensor&, const OptionalTensor&, double,
                         bool, bool wide_total) {
    const at::ScalarType type = wide_total && hidden.scalar_type() != at::kDouble ? at::kFloat : hidden.scalar_type();
    return {output(hidden.sym_sizes(), hidden), output(hidden.sym_sizes(), hidden, type)};
}
NormGradients norm_gradients(const Tensor&, const OptionalTensor&, const Tensor& total, const Tensor& weight, double,
                             bool) {
    return {output(total.sym_sizes(), total), at::empty_like(weight), at::empty_like(weight)};
}

NormOutputs add_norm(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight,
                     const OptionalTensor& bias, double eps, bool centred, bool wide_total) {
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
    NormOutputs outputs = norm_outputs(hidden, residual, weight, bias, eps, centred, wide_total);
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

NormGradients add_norm_backward(const Tensor& grad_out, const OptionalTensor& grad_total, const Tensor& total,
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
    norm.total = rows_of(sums), norm.grad_out = rows_of(outer), norm.grad_total = rows_of(direct),
    norm.grad = rows_of(flat(grad));
    const Kernels& kernels = kernels_in_use();
    spread(tasks, 4 * norm.rows * norm.dim, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.norm_workspace_bytes(norm));
        kernels.norm_backward(norm, begin, end, workspace.get());
    });
    const Tensor sum = sum_rows(partials);
    grad_weight.copy_(sum[0]), grad_bias.copy_(sum[1]);
    return gradients;
}

struct NormGrad : torch::autograd::Function<NormGrad> {
    static variable_list forward(AutogradContext* context, const Tensor& hidden, const OptionalTensor& residual,
                                 const Tensor& weight, const OptionalTensor& bias, double eps, bool centred,
                                 bool wide_total, Transforms& aside) {
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
            std::tie(grad, grad_weight, grad_bias) =
                backward_op.call(grads[0], given(grads[1]), saved[0], saved[1], context->saved_data["eps"].toDouble(),
                                 context->saved_data["centred"].toBool());
        if (!grad.defined()) return variable_list(8);
        return {as("hidden", grad), as("residual", grad),
                grad_weight,        grad_bias.defined() ? as("bias", grad_bias) : Tensor(),
                Tensor(),           Tensor(),
                Tensor(),           Tensor()};
    }
};

NormOutputs add_norm_autograd(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight,
                              const OptionalTensor& bias, double eps, bool centred, bool wide_total) {
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
    library.def(
        "add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred,"
        " bool wide_total) -> (Tensor, Tensor)");
    library.def(
        "add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight, float eps,"
        " bool centred) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) {
    library.impl("add_norm", &add_norm);
    library.impl("add_norm_backward", &add_norm_backward);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("add_norm", &Meta<norm_outputs>::run);
    library.impl("add_norm_backward", &Meta<norm_gradients>::run);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("add_norm", &add_norm_autograd);
    library.impl("add_norm_backward", Undifferentiable<cure>::kernel());
}

}  // namespace scanlab::mixer
