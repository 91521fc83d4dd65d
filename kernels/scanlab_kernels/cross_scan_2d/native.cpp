// The scan of a feature map in four directions as a torch op: arguments checked, described to the kernel.
#include <memory>

#include "cpu/binding.h"
#include "cpu/checks.h"
#include "cpu/parallel.h"
#include "cross_scan_2d/native.h"

namespace scanlab {

#define SCANLAB_DECLARE(isa) extern const CrossKernel cross_kernel_##isa##_float, cross_kernel_##isa##_double;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE)

namespace {

// In the order of Isa.
#define SCANLAB_TABLES(isa) {&cross_kernel_##isa##_float, &cross_kernel_##isa##_double},
constexpr const CrossKernel* tables[][2] = {SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLES)};

constexpr int64_t max_setting = 1 << 20;

// (batch, dim, height, width), or with an axis of directions before dim.
FeatureMap map_of(const Tensor& tensor) {
    const Shape strides = tensor.strides();
    if (strides.size() == 4) return {tensor.data(), strides[0], 0, strides[1], strides[2], strides[3]};
    return {tensor.data(), strides[0], strides[1], strides[2], strides[3], strides[4]};
}

Tensor cross_scan_2d(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                     const OptionalTensor& D, const OptionalTensor& delta_bias, const OptionalTensor& dt_weight,
                     bool softplus, int64_t time_block, int64_t exp, int64_t isa) {
    const Shape sizes = u.sizes(), rates = A.sizes();
    require(sizes.size() == 4 && numel(sizes) > 0, "u is ", sizes, ": must be (batch, dim, height, width).");
    require(rates.size() == 3 && rates[2] >= 1, "A is ", rates, ": must be (4, dim, state).");
    require(time_block >= 1 && time_block <= max_setting, "time_block=", time_block, ": must be 1..", max_setting, ".");
    require(exp >= int64_t(Exp::fast) && exp <= int64_t(Exp::exact), "exp=", exp, ": must be 0 or 1.");
    require(isa >= 0 && isa < int64_t(std::size(tables)) && tables[isa][0]->is_supported(), "isa=", isa,
            ": this machine lacks it.");
    CrossScan scan;
    scan.batch = sizes[0], scan.dim = sizes[1], scan.height = sizes[2], scan.width = sizes[3], scan.state = rates[2];
    scan.type = type_of(u), scan.softplus = softplus, scan.exp = Exp(exp), scan.time_block = int(time_block);
    const Dtype stored = u.dtype(), real = stored == Dtype::float64 ? Dtype::float64 : Dtype::float32;
    const int64_t directions = cross_directions;
    expect("u", u, sizes, stored);
    if (dt_weight) {
        const Shape weights = dt_weight.sizes();
        require(weights.size() == 3 && weights[2] >= 1, "dt_weight is ", weights, ": must be (4, dim, rank).");
        scan.rank = weights[2];
    }
    const int64_t delta_channels = scan.rank ? scan.rank : scan.dim;
    expect("delta", delta, {scan.batch, directions, delta_channels, scan.height, scan.width}, stored);
    expect("A", A, {directions, scan.dim, scan.state}, real);
    for (const Tensor* projection : {&B, &C})
        expect("B or C", *projection, {scan.batch, directions, scan.state, scan.height, scan.width}, stored);
    const Tensor rates_dense = dense(A, real), skips = dense("D", D, {directions, scan.dim}, real),
                 biases = dense("delta_bias", delta_bias, {directions, scan.dim}, real),
                 projections = dense("dt_weight", dt_weight, {directions, scan.dim, scan.rank}, real);
    Tensor out = empty_output_like(u);
    scan.u = map_of(u), scan.delta = map_of(delta), scan.B = map_of(B), scan.C = map_of(C), scan.out = map_of(out);
    scan.A = rates_dense.data(), scan.D = skips.data(), scan.delta_bias = biases.data();
    scan.dt_weight = projections.data();

    const CrossKernel& kernel = *tables[isa][scan.type == Type::float64];
    const int64_t tasks = scan.batch * ((scan.dim + kernel.lanes - 1) / kernel.lanes);
    const int64_t updates = directions * scan.batch * scan.dim * scan.height * scan.width * scan.state;
    mixer::spread(tasks, updates, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernel.workspace_bytes(scan));
        kernel.run(scan, begin, end, workspace.get());
    });
    return out;
}

}  // namespace
}  // namespace scanlab

SCANLAB_OPS(scanlab_cross_scan, library) {
    library.define(
        "cross_scan_2d(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias,"
        " Tensor? dt_weight, bool softplus, int time_block, int exp, int isa) -> Tensor");
    library.define("note_fork() -> ()");
}

SCANLAB_KERNELS(scanlab_cross_scan, CPU, library) {
    library.implement("cross_scan_2d", scanlab::boxed<scanlab::cross_scan_2d>);
}

SCANLAB_KERNELS(scanlab_cross_scan, CompositeExplicitAutograd, library) {
    library.implement("note_fork", scanlab::boxed<scanlab::note_fork>);
}
