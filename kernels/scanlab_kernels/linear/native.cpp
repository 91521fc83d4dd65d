// Linear layers as torch ops on CPU tensors.
#include "linear/call.h"

namespace scanlab::mixer {

void multiply_gemv(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& out) {
    require(x.dim() == 2 && weight.dim() == 2, "x (rows, in) and weight (out, in)");
    const Dtype dtype = x.dtype();
    require(dtype != Dtype::float64, "x is float64: must be float32, bfloat16 or float16");
    Gemv linear;
    linear.type = type_of(x);
    linear.rows = x.size(0), linear.features = weight.size(0), linear.depth = x.size(1);
    expect("x", x, x.sizes());
    expect("weight", weight, {linear.features, linear.depth}, dtype);
    if (bias) expect("bias", bias, {linear.features}, dtype);
    const Tensor rows = dense(x, Dtype::float32), biases = dense(bias, Dtype::float32),
                 weights = weight.stride(1) == 1 ? weight : dense(weight, dtype);
    linear.x = rows.data<float>(), linear.bias = biases.data<float>(), linear.out = out.data();
    linear.weight = weights.data(), linear.weight_row = weights.stride(0);
    const Kernels& kernels = kernels_in_use();
    spread(kernels.gemv_tasks(linear), linear.features * linear.depth,
           [&](int64_t begin, int64_t end) { kernels.gemv(linear, begin, end); });
}

namespace {
// The elements of the depth that are multiplied at once, and to a multiple of which it is padded.
int64_t depth_step(Dtype dtype) { return dtype == Dtype::bfloat16 ? 2 : 1; }
}  // namespace

PackedLinear product(const Tensor& x, const Tensor& packed, const Tensor& bias, int64_t features, const Tensor& out) {
    expect("x", x, x.sizes());
    require(x.size(-1) <= 1 || x.stride(-1) == 1, "the rows of x must be dense");
    const int64_t step = depth_step(x.dtype());
    PackedLinear linear;
    linear.depth = x.size(-1), linear.features = features;
    linear.x = x.data(), linear.x_row = x.stride(-2);
    linear.packed_depth = (linear.depth + step - 1) / step * step;
    expect("packed", packed, {padded(features) * linear.packed_depth}, x.dtype());
    require(packed.is_contiguous(), "packed has stride ", packed.strides(), ": must be contiguous");
    linear.packed = packed.data();
    if (bias) {
        expect("bias", bias, {features}, Dtype::float32);
        linear.bias = bias.data<float>();
    }
    if (out) linear.out = out.data(), linear.out_row = out.stride(-2);
    return linear;
}

const Products& products_of(const Tensor& x) {
    const Products* products = products_in_use(x.dtype());
    require(products, x.dtype(), ": this machine has no packed products of it");
    return *products;
}

namespace {

Tensor gemv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
    require(x.dim() == 2 && weight.dim() == 2, "x (rows, in) and weight (out, in)");
    const Tensor out = empty_output({x.size(0), weight.size(0)}, x.dtype());
    multiply_gemv(x, weight, bias, out);
    return out;
}

Tensor pack_linear(const Tensor& weight) {
    require(weight.dim() == 2, "weight is ", weight.sizes(), ": must be (out, in)");
    expect("weight", weight, weight.sizes());
    const int64_t features = weight.size(0), depth = weight.size(1), step = depth_step(weight.dtype());
    const int64_t steps = (depth + step - 1) / step, whole = steps * step, all = padded(features);
    Tensor full = weight;
    if (all != features || whole != depth) {
        full = empty_output({all, whole}, weight.dtype());
        full.zero();
        full.strided({features, depth}, full.strides()).copy_from(weight);
    }
    const int64_t row = full.stride(0), column = full.stride(1);
    const Tensor packed = empty_output({all * whole}, weight.dtype());
    // Panels of `pitch` features, feature beside feature.
    const auto pack = [&](int64_t first, int64_t count, int64_t pitch) {
        if (!count) return;
        const int64_t sizes[] = {count / pitch, steps, pitch, step};
        packed.strided(sizes, contiguous_strides(sizes), first * whole)
            .copy_from(full.strided(sizes, {pitch * row, step * column, row, column}, first * row));
    };
    const int64_t rest = all % panel_features;
    pack(0, all - rest, panel_features);
    pack(all - rest, rest, rest);
    return packed;
}

}  // namespace

Tensor packed_linear(const Tensor& x, const Tensor& packed, const OptionalTensor& bias, int64_t features) {
    require(x.dim() >= 1 && features >= 0, "x is ", x.sizes(), " and features ", features,
            ": must be (..., in) and at least 0");
    expect_memory("x", x);
    if (bias) expect("bias", bias, {features});
    const Tensor rows = rows_of(x), biases = dense(bias, Dtype::float32);
    std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
    sizes.back() = features;
    const Tensor out = empty_output(sizes, x.dtype());
    const PackedLinear linear = product(rows, packed, biases, features, rows_of(out));
    const int64_t count = rows.size(0), steps = (count + row_step - 1) / row_step, columns = panels(features);
    const Products& products = products_of(x);
    const auto work = count * features * linear.depth / 16;
    if (steps >= 4 * torch_threads())
        spread(steps, work, [&](int64_t begin, int64_t end) {
            products.packed_linear(linear, begin * row_step, std::min(end * row_step, count), 0, columns);
        });
    else
        spread(columns, work,
               [&](int64_t begin, int64_t end) { products.packed_linear(linear, 0, count, begin, end); });
    return out;
}

SCANLAB_OPS(scanlab_mixer, library) {
    library.define("gemv(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    library.define("pack_linear(Tensor weight) -> Tensor");
    library.define("packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt features) -> Tensor");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) {
    library.implement("gemv", boxed<gemv>);
    library.implement("pack_linear", boxed<pack_linear>);
    library.implement("packed_linear", boxed<packed_linear>);
}

}  // namespace scanlab::mixer
