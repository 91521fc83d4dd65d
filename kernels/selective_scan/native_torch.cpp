// The scan as a torch op: arguments checked, described to the kernel, outputs allocated.
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "native.h"

namespace scanlab {
namespace {

using at::Tensor;
using c10::IValue;
using c10::ScalarType;

constexpr int tensors_per_direction = 9;

Tensor tensor_at(c10::ArrayRef<IValue> arguments, int index) {
    return arguments[index].isTensor() ? arguments[index].toTensor() : Tensor();
}

Type type_of(ScalarType type) {
    switch (type) {
        case ScalarType::Float: return Type::float32;
        case ScalarType::Double: return Type::float64;
        case ScalarType::BFloat16: return Type::bfloat16;
        case ScalarType::Half: return Type::float16;
        default: TORCH_CHECK(false, "u is ", type, ": must be float32, float64, bfloat16 or float16.");
    }
}

void expect(const Tensor& tensor, const char* name, at::IntArrayRef shape, ScalarType type) {
    TORCH_CHECK(tensor.sizes() == shape && tensor.scalar_type() == type && tensor.is_cpu(), name, " is ",
                tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device(), ": must be ", type, " ", shape, " on the CPU.");
}

Channels channels_of(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Weights weights_of(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {tensor.data_ptr(), tensor.stride(0), tensor.dim() == 2 ? tensor.stride(1) : 0};
}

States states_of(const Tensor& tensor) {
    if (!tensor.defined()) return {};
    return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Projection projection_of(const Tensor& tensor, const char* name, Scan& scan, ScalarType stored, ScalarType weight) {
    if (tensor.dim() == 2) {
        expect(tensor, name, {scan.dim, scan.state}, weight);
        return {tensor.data_ptr(), true, 0, 0, tensor.stride(0), tensor.stride(1), 0};
    }
    const int64_t columns = scan.complex ? 2 * scan.length : scan.length;
    if (tensor.dim() == 3) {
        expect(tensor, name, {scan.batch, scan.state, columns}, stored);
        return {tensor.data_ptr(), false, tensor.stride(0), 0, 0, tensor.stride(1), tensor.stride(2)};
    }
    TORCH_CHECK(tensor.dim() == 4, name, " has ", tensor.dim(), " axes: must have 2, 3 or 4.");
    const int64_t groups = tensor.size(1);
    TORCH_CHECK(groups > 0 && scan.dim % groups == 0 && (scan.groups == 1 || scan.groups == groups), name, " has ", groups,
                " groups: must divide dim ", scan.dim, " and be as many in B and in C.");
    scan.groups = groups;
    expect(tensor, name, {scan.batch, groups, scan.state, columns}, stored);
    return {tensor.data_ptr(), false, tensor.stride(0), tensor.stride(1), 0, tensor.stride(2), tensor.stride(3)};
}

// scan(u, delta, A, B, C, D, z, delta_bias, initial_state, the same again for the second direction,
//      softplus, reverse, threads, time_block, channel_tile, exp, isa) -> (out, last_state)
void scan_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const auto arguments = torch::jit::last(*stack, count);
    const auto settings = arguments.slice(2 * tensors_per_direction);

    Scan scan;
    const Tensor u = tensor_at(arguments, 0), A = tensor_at(arguments, 2);
    TORCH_CHECK(u.dim() == 3 && u.numel() > 0, "u is ", u.sizes(), ": must be (batch, dim, length), none of them 0.");
    TORCH_CHECK(A.dim() == 2 && A.size(1) >= 1, "A is ", A.sizes(), ": must be (dim, state).");
    scan.type = type_of(u.scalar_type());
    scan.batch = u.size(0), scan.dim = u.size(1), scan.length = u.size(2), scan.state = A.size(1);
    scan.complex = A.is_complex();
    TORCH_CHECK(!scan.complex, "A is complex: not supported.");
    scan.directions = tensor_at(arguments, tensors_per_direction).defined() ? 2 : 1;
    scan.softplus = settings[0].toBool();
    scan.threads = int(settings[2].toInt());
    scan.time_block = int(settings[3].toInt());
    scan.channel_tile = int(settings[4].toInt());
    TORCH_CHECK(scan.threads >= 1 && scan.time_block >= 1 && scan.channel_tile >= 1, "threads, time_block and channel_tile must be at least 1.");
    scan.exp = Exp(settings[5].toInt());
    const int64_t isa = settings[6].toInt();
    TORCH_CHECK(isa <= int64_t(best_isa()), "instruction set ", isa, ": this machine has up to ", int64_t(best_isa()), ".");
    scan.isa = isa < 0 ? best_isa() : Isa(isa);

    const ScalarType stored = u.scalar_type();
    const ScalarType real = stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    const ScalarType weight = scan.complex ? c10::toComplexType(real) : real;
    std::vector<int64_t> last_shape = {scan.batch, scan.dim, scan.state};
    if (scan.directions == 2) last_shape.insert(last_shape.begin(), 2);
    const Tensor out = at::empty_like(u);
    const Tensor last = at::empty(last_shape, A.options());
    scan.out = channels_of(out);

    for (int d = 0; d < scan.directions; d++) {
        const auto argument = [&](int index) { return tensor_at(arguments, d * tensors_per_direction + index); };
        const auto optional = [&](int index, const char* name, at::IntArrayRef shape, ScalarType type) {
            const Tensor tensor = argument(index);
            if (tensor.defined()) expect(tensor, name, shape, type);
            return tensor;
        };
        const Tensor each_u = argument(0), delta = argument(1), each_A = argument(2);
        TORCH_CHECK(delta.defined() && each_A.defined() && argument(3).defined() && argument(4).defined(),
                    "the second direction lacks one of delta, A, B and C.");
        expect(each_u, "u", u.sizes(), stored);
        expect(delta, "delta", u.sizes(), stored);
        expect(each_A, "A", {scan.dim, scan.state}, weight);
        Direction& direction = scan.direction[d];
        direction.reverse = d == 1 || settings[1].toBool();
        direction.u = channels_of(each_u);
        direction.delta = channels_of(delta);
        direction.A = weights_of(each_A);
        direction.B = projection_of(argument(3), "B", scan, stored, weight);
        direction.C = projection_of(argument(4), "C", scan, stored, weight);
        direction.D = weights_of(optional(5, "D", {scan.dim}, real));
        direction.z = channels_of(optional(6, "z", u.sizes(), stored));
        direction.delta_bias = weights_of(optional(7, "delta_bias", {scan.dim}, real));
        direction.initial = states_of(optional(8, "initial_state", {scan.batch, scan.dim, scan.state}, weight));
        direction.last = states_of(scan.directions == 2 ? last.select(0, d) : last);
    }
    run(scan);
    torch::jit::drop(*stack, count);
    torch::jit::push(*stack, out, last);
}

int64_t best() { return int64_t(best_isa()); }

}  // namespace
}  // namespace scanlab

TORCH_LIBRARY(scanlab, m) {
    m.def(
        "scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
        " Tensor? initial_state, Tensor? u2, Tensor? delta2, Tensor? A2, Tensor? B2, Tensor? C2, Tensor? D2, Tensor? z2,"
        " Tensor? delta_bias2, Tensor? initial_state2, bool softplus, bool reverse, int threads, int time_block,"
        " int channel_tile, int exp, int isa) -> (Tensor out, Tensor last_state)");
    m.def("best_isa() -> int", &scanlab::best);
}

TORCH_LIBRARY_IMPL(scanlab, CPU, m) { m.impl("scan", torch::CppFunction::makeFromBoxedFunction<&scanlab::scan_boxed>()); }
