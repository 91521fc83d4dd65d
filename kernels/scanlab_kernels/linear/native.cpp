// Linear layers as torch ops on CPU tensors.
#include <ATen/ops/constant_pad_nd.h>

#include "cpu/library_autograd.h"
#include "linear/call.h"

namespace scanlab::mixer {

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
    spread(kernels.gemv_tasks(linear), linear.features * linear.depth,
           [&](int64_t begin, int64_t end) { kernels.gemv(linear, begin, end); });
}

namespace {
// The elements of the depth that are multiplied at once, and to a multiple of which it is padded.
int64_t depth_step(at::ScalarType type) { return type == at::kBFloat16 ? 2 : 1; }
}  // namespace

// The product of rows x with a packed weight, checked and described to the kernel.
PackedLinear product(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, int64_t features,
                     const Tensor& out) {
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

namespace {

Tensor gemv_output(const Tensor& x, const Tensor& weight, const OptionalTensor&) {
    return at::empty_symint({x.sym_size(0), weight.sym_size(0)}, x.options());
}

Tensor gemv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
    const Tensor out = at::empty({x.size(0), weight.size(0)}, x.options());
    multiply_gemv(x, weight, bias, out);
    return out;
}

Tensor pack_linear_output(const Tensor& weight) {
    const int64_t step = depth_step(weight.scalar_type());
    return at::empty_symint({(weight.sym_size(0) + 15) / 16 * 16 * ((weight.sym_size(1) + step - 1) / step * step)},
                            weight.options());
}

Tensor pack_linear(const Tensor& weight) {
    TORCH_CHECK_VALUE(weight.dim() == 2, "weight is ", weight.sizes(), ": must be (out, in)");
    expect("weight", weight, weight.sizes());
    const int64_t features = weight.size(0), depth = weight.size(1), step = depth_step(weight.scalar_type());
    const int64_t steps = (depth + step - 1) / step, whole = steps * step, all = padded(features);
    const Tensor full =
        all == features && whole == depth ? weight : at::constant_pad_nd(weight, {0, whole - depth, 0, all - features});
    const Tensor packed = at::empty({all * whole}, weight.options());
    const auto pack = [&](int64_t first, int64_t count, int64_t pitch) {
        if (!count) return;
        const Tensor rows = full.narrow(0, first, count).view({count / pitch, pitch, steps, step});
        packed.narrow(0, first * whole, count * whole)
            .view({count / pitch, steps, pitch, step})
            .copy_(rows.transpose(1, 2));
    };
    const int64_t rest = all % panel_features;
    pack(0, all - rest, panel_features);
    pack(all - rest, rest, rest);
    return packed;
}

Tensor packed_linear_output(const Tensor& x, const Tensor&, const OptionalTensor&, c10::SymInt features) {
    c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
    shape.back() = features;
    return output(shape, x);
}

Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, c10::SymInt sym_features) {
    const int64_t features = sym_features.expect_int();
    TORCH_CHECK_VALUE(x.dim() >= 1 && features >= 0, "x is ", x.sizes(), " and features ", features,
                      ": must be (..., in) and at least 0");
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
        spread(columns, work,
               [&](int64_t begin, int64_t end) { products.packed_linear(linear, 0, count, begin, end); });
    return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
    library.def("gemv(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    library.def("pack_linear(Tensor weight) -> Tensor");
    library.def("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt features) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) {
    library.impl("gemv", &gemv);
    library.impl("pack_linear", &pack_linear);
    library.impl("packed_linear", &packed_linear);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("gemv", &Meta<gemv_output>::run);
    library.impl("pack_linear", &Meta<pack_linear_output>::run);
    library.impl("packed_linear", &Meta<packed_linear_output>::run);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("gemv", Undifferentiable<cure>::kernel());
    library.impl("pack_linear", Undifferentiable<cure>::kernel());
    library.impl("packed_linear", Undifferentiable<cure>::kernel());
}

}  // namespace scanlab::mixer
