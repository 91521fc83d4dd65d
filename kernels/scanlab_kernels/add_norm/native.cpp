// Residual add and norm as a torch op on CPU tensors.
#include "add_norm/native.h"

#include "add_norm/call.h"
#include "cpu/library.h"

namespace scanlab::mixer {

namespace {

// Of the sum, and, in the dtype of the arithmetic, of weight and bias.
using NormGradients = std::tuple<Tensor, Tensor, Tensor>;

Matrix described(const Tensor& rows) {
    if (!rows) return {};
    return {rows.data(), type_of(rows), 0, rows.stride(0), rows.stride(1)};
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

NormOutputs add_norm(const Tensor& hidden, const OptionalTensor& residual, const Tensor& weight,
                     const OptionalTensor& bias, double eps, bool centred, bool wide_total) {
    require(hidden.dim() >= 1, "hidden: must be (..., dim)");
    expect("hidden", hidden, hidden.sizes());
    Norm norm = norm_call(hidden, weight, eps, centred);
    if (residual) expect("residual", residual, hidden.sizes());
    if (bias) expect("bias", bias, {norm.dim});
    const NormOutputs outputs = {empty_output(hidden.sizes(), hidden.dtype()),
                                 empty_output(hidden.sizes(), wide_total ? arithmetic(norm.wide) : hidden.dtype())};
    if (norm.rows == 0) return outputs;
    const Tensor rows = rows_of(hidden), other = residual ? rows_of(residual) : Tensor();
    const Tensor weights = rows_of(weight), biases = bias ? rows_of(bias) : Tensor();
    norm.weight = described(weights), norm.bias = described(biases);
    norm.hidden = described(rows), norm.residual = described(other);
    norm.out = described(rows_of(std::get<0>(outputs))), norm.total = described(rows_of(std::get<1>(outputs)));
    const Kernels& kernels = kernels_in_use();
    spread((norm.rows + norm_rows - 1) / norm_rows, 2 * norm.rows * norm.dim, kernels.norm_workspace_bytes(norm),
           [&](int64_t begin, int64_t end, void* workspace) { kernels.norm(norm, begin, end, workspace); });
    return outputs;
}

namespace {

NormGradients add_norm_backward(const Tensor& grad_out, const OptionalTensor& grad_total, const Tensor& total,
                                const Tensor& weight, double eps, bool centred) {
    require(total.dim() >= 1, "total: must be (..., dim)");
    expect("total", total, total.sizes());
    Norm norm = norm_call(total, weight, eps, centred);
    expect("grad_out", grad_out, total.sizes());
    if (grad_total) expect("grad_total", grad_total, total.sizes());
    const NormGradients gradients = {empty_output(total.sizes(), total.dtype()),
                                     empty_output({norm.dim}, arithmetic(norm.wide)),
                                     empty_output({norm.dim}, arithmetic(norm.wide))};
    const auto& [grad, grad_weight, grad_bias] = gradients;
    if (norm.rows == 0) {
        grad_weight.zero(), grad_bias.zero();
        return gradients;
    }
    const Tensor weights = rows_of(weight), outer = rows_of(grad_out), sums = rows_of(total),
                 direct = grad_total ? rows_of(grad_total) : Tensor();
    const int64_t tasks = (norm.rows + norm_rows - 1) / norm_rows;
    const Tensor partials = empty_output({tasks, 2, norm.dim}, arithmetic(norm.wide));
    norm.weight = described(weights), norm.partials = partials.data();
    norm.total = described(sums), norm.grad_out = described(outer), norm.grad_total = described(direct),
    norm.grad = described(rows_of(grad));
    const Kernels& kernels = kernels_in_use();
    spread(tasks, 4 * norm.rows * norm.dim, kernels.norm_workspace_bytes(norm),
           [&](int64_t begin, int64_t end, void* workspace) { kernels.norm_backward(norm, begin, end, workspace); });
    const Tensor sum = sum_rows(partials);
    grad_weight.copy_from(sum.strided({norm.dim}, {1})), grad_bias.copy_from(sum.strided({norm.dim}, {1}, norm.dim));
    return gradients;
}

}  // namespace

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "add_norm(Tensor hidden, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred,"
        " bool wide_total) -> (Tensor, Tensor)");
    library.define(
        "add_norm_backward(Tensor grad_out, Tensor? grad_total, Tensor total, Tensor weight, float eps,"
        " bool centred) -> (Tensor, Tensor, Tensor)");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) {
    library.implement("add_norm", boxed<add_norm>);
    library.implement("add_norm_backward", boxed<add_norm_backward>);
}

}  // namespace scanlab::mixer
