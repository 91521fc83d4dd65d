// The scan as torch ops: arguments checked, described to the kernel, outputs allocated.
#include <ATen/Parallel.h>
#include <ATen/core/stack.h>
#include <ATen/ops/resolve_conj.h>
#include <ATen/ops/resolve_neg.h>
#include <ATen/ops/view_as_real.h>
#include <torch/library.h>

#include "cpu/allocator.h"
#include "cpu/arguments.h"
#include "selective_scan/native/scan.h"

namespace scanlab {
namespace {

using c10::IValue;
using c10::ScalarType;

// In the order of ScanInputs.
enum { u_, delta_, A_, B_, C_, D_, z_, delta_bias_, initial_state_, tensors_per_direction };
constexpr const char* names[] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"};

Tensor tensor_at(c10::ArrayRef<IValue> arguments, int index) {
    return arguments[index].isTensor() ? arguments[index].toTensor().resolve_conj().resolve_neg() : Tensor();
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

constexpr int64_t max_threads = 4096, max_setting = 1 << 20;

int number(const char* name, const IValue& value, int64_t low, int64_t high) {
    const int64_t given = value.toInt();
    TORCH_CHECK_VALUE(given >= low && given <= high, name, "=", given, ": must be ", low, "..", high, ".");
    return int(given);
}

// 0 asks for as many threads as torch's own ops would take here.
int threads_of(int asked) {
    if (asked) return asked;
    return at::in_parallel_region() ? 1 : at::get_num_threads();
}

// A scan as the arguments of an op ask for it: twice nine tensors, then softplus, reverse, threads, time_block,
// channel_tile, time_chunks, exp, isa. Holds on to the tensors that the scan points to.
struct Request {
    Scan scan;
    ScalarType stored, real, weight;
    Tensor inputs[2][tensors_per_direction];

    explicit Request(c10::ArrayRef<IValue> arguments) {
        const auto settings = arguments.slice(2 * tensors_per_direction);
        for (int d = 0; d < 2; d++)
            for (int i = 0; i < tensors_per_direction; i++)
                inputs[d][i] = tensor_at(arguments, d * tensors_per_direction + i);
        const Tensor &u = inputs[0][u_], &A = inputs[0][A_];
        TORCH_CHECK_VALUE(u.dim() == 3 && u.numel() > 0, "u is ", u.sizes(),
                          ": must be (batch, dim, length), none of them 0.");
        TORCH_CHECK_VALUE(A.dim() == 2 && A.size(1) >= 1, "A is ", A.sizes(), ": must be (dim, state).");
        stored = u.scalar_type();
        scan.type = type_of(u);
        real = stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
        scan.complex = A.is_complex();
        weight = scan.complex ? c10::toComplexType(real) : real;
        scan.batch = u.size(0), scan.dim = u.size(1), scan.length = u.size(2), scan.state = A.size(1);
        scan.directions = inputs[1][u_].defined() ? 2 : 1;
        scan.softplus = settings[0].toBool();
        scan.threads = threads_of(number("threads", settings[2], 0, max_threads));
        scan.time_block = number("time_block", settings[3], 1, max_setting);
        scan.channel_tile = number("channel_tile", settings[4], 1, max_setting);
        scan.time_chunks = number("time_chunks", settings[5], 1, max_setting);
        TORCH_CHECK_VALUE(scan.time_chunks == 1 || scan.directions == 1, "time_chunks is ", scan.time_chunks,
                          ": must be 1 with two directions.");
        const int64_t exp = settings[6].toInt();
        TORCH_CHECK_VALUE(exp == int64_t(Exp::fast) || exp == int64_t(Exp::exact), "exp is ", exp,
                          ": must be 0 (fast) or 1 (exact).");
        scan.exp = Exp(exp);
        const int64_t isa = settings[7].toInt();
        TORCH_CHECK_VALUE(isa >= 0 && isa <= int64_t(best_isa()), "instruction set ", isa, ": this machine has up to ",
                          int64_t(best_isa()), ".");
        scan.isa = Isa(isa);
        for (int d = 0; d < scan.directions; d++) describe(d, settings[1].toBool());
    }

    void describe(int d, bool reverse) {
        const auto& tensors = inputs[d];
        TORCH_CHECK_VALUE(
            tensors[delta_].defined() && tensors[A_].defined() && tensors[B_].defined() && tensors[C_].defined(),
            "direction ", d, " lacks one of delta, A, B and C.");
        const std::vector<int64_t> channels = {scan.batch, scan.dim, scan.length},
                                   states = {scan.batch, scan.dim, scan.state};
        for (int i : {u_, delta_, z_})
            if (tensors[i].defined()) expect(names[i], tensors[i], channels, stored);
        for (int i : {D_, delta_bias_})
            if (tensors[i].defined()) expect(names[i], tensors[i], {scan.dim}, real);
        expect("A", tensors[A_], {scan.dim, scan.state}, weight);
        if (tensors[initial_state_].defined()) expect("initial_state", tensors[initial_state_], states, weight);
        Direction& direction = scan.direction[d];
        direction.reverse = d == 1 || reverse;
        direction.u = channels_of(tensors[u_]);
        direction.delta = channels_of(tensors[delta_]);
        direction.z = channels_of(tensors[z_]);
        direction.A = weights_of(tensors[A_]);
        direction.D = weights_of(tensors[D_]);
        direction.delta_bias = weights_of(tensors[delta_bias_]);
        direction.initial = states_of(tensors[initial_state_]);
        direction.B = projection_of(tensors[B_], "B");
        direction.C = projection_of(tensors[C_], "C");
    }

    Projection projection_of(const Tensor& tensor, const char* name) {
        if (tensor.dim() == 2) {
            expect(name, tensor, {scan.dim, scan.state}, weight);
            return {tensor.data_ptr(), true, 0, 0, tensor.stride(0), tensor.stride(1), 0};
        }
        const int64_t columns = scan.length * parts();
        if (tensor.dim() == 3) {
            TORCH_CHECK_VALUE(scan.groups == 1, name, " has no groups: must have ", scan.groups, ".");
            expect(name, tensor, {scan.batch, scan.state, columns}, stored);
            return {tensor.data_ptr(), false, tensor.stride(0), 0, 0, tensor.stride(1), tensor.stride(2)};
        }
        TORCH_CHECK_VALUE(tensor.dim() == 4, name, " has ", tensor.dim(), " axes: must have 2, 3 or 4.");
        const int64_t groups = tensor.size(1);
        TORCH_CHECK_VALUE(groups > 0 && scan.dim % groups == 0 && (scan.groups == 1 || scan.groups == groups), name,
                          " has ", groups, " groups: must divide dim ", scan.dim, " and be as many in B and in C.");
        scan.groups = groups;
        expect(name, tensor, {scan.batch, groups, scan.state, columns}, stored);
        return {tensor.data_ptr(), false, tensor.stride(0), tensor.stride(1), 0, tensor.stride(2), tensor.stride(3)};
    }

    int64_t parts() const { return scan.complex ? 2 : 1; }
};

Tensor empty_last_state(const Request& request) {
    const Scan& scan = request.scan;
    std::vector<int64_t> shape = {scan.batch, scan.dim, scan.state};
    if (scan.directions == 2) shape.insert(shape.begin(), 2);
    return empty_output(shape, request.weight);
}

Tensor of_direction(const Request& request, const Tensor& states, int d) {
    return request.scan.directions == 2 ? states.select(0, d) : states;
}

// Runs the scan and returns out, last_state and, where asked for, the checkpoints.
std::vector<Tensor> forward(c10::ArrayRef<IValue> arguments, bool keep) {
    Request request(arguments);
    Scan& scan = request.scan;
    std::vector<Tensor> results = {empty_output_like(request.inputs[0][u_]), empty_last_state(request)};
    scan.out = channels_of(results[0]);
    for (int d = 0; d < scan.directions; d++) scan.direction[d].last = states_of(of_direction(request, results[1], d));
    if (keep) {
        results.push_back(empty_output(
            {scan.directions, scan.batch, blocks(scan), scan.state * request.parts(), scan.dim}, request.real));
        scan.checkpoints = results[2].data_ptr();
    }
    run(scan);
    return results;
}

// The gradients of the tensors that are there, in their order.
std::vector<Tensor> backward(c10::ArrayRef<IValue> arguments) {
    Request request(arguments.slice(3));
    Scan& scan = request.scan;
    const Tensor grad_out = tensor_at(arguments, 0), grad_last = tensor_at(arguments, 1),
                 checkpoints = tensor_at(arguments, 2);
    expect("grad_out", grad_out, {scan.batch, scan.dim, scan.length}, request.stored);
    expect("checkpoints", checkpoints,
           {scan.directions, scan.batch, blocks(scan), scan.state * request.parts(), scan.dim}, request.real);
    TORCH_CHECK_VALUE(checkpoints.is_contiguous(), "checkpoints must be as the scan left them.");
    if (grad_last.defined()) expect("grad_last", grad_last, empty_last_state(request).sizes(), request.weight);
    scan.checkpoints = checkpoints.data_ptr();

    Gradient gradient;
    gradient.out = channels_of(grad_out);
    const Tensor terms = empty_output({int64_t(terms_bytes(scan))}, ScalarType::Byte);
    gradient.terms = terms.data_ptr();
    Tensor results[2][tensors_per_direction];
    for (int d = 0; d < scan.directions; d++) {
        const auto& tensors = request.inputs[d];
        auto& of = results[d];
        for (int i : {u_, delta_, z_})
            if (tensors[i].defined()) of[i] = empty_output_like(tensors[i]);
        for (int i : {A_, D_, delta_bias_, initial_state_})
            if (tensors[i].defined()) of[i] = empty_output(tensors[i].sizes(), tensors[i].scalar_type());
        for (int i : {B_, C_}) {
            const auto shape = tensors[i].sizes();
            std::vector<int64_t> by_time(shape.begin(), shape.end() - 2);
            by_time.insert(by_time.end(), {scan.length, scan.state, request.parts()});
            of[i] = shape.size() == 2 ? empty_output(shape, request.weight) : empty_output(by_time, request.real);
        }
        const auto memory = [&](int i) { return of[i].defined() ? of[i].data_ptr() : nullptr; };
        DirectionGradient& to = gradient.direction[d];
        to.u = channels_of(of[u_]), to.delta = channels_of(of[delta_]), to.z = channels_of(of[z_]);
        to.A = memory(A_), to.B = memory(B_), to.C = memory(C_), to.D = memory(D_), to.delta_bias = memory(delta_bias_);
        to.initial = states_of(of[initial_state_]);
        if (grad_last.defined()) to.last = states_of(of_direction(request, grad_last, d));
    }
    run_backward(scan, gradient);

    std::vector<Tensor> there;
    for (int d = 0; d < scan.directions; d++)
        for (int i = 0; i < tensors_per_direction; i++) {
            const Tensor& result = results[d][i];
            if (!result.defined()) continue;
            const bool by_time = (i == B_ || i == C_) && request.inputs[d][i].dim() > 2;
            there.push_back(by_time ? result.transpose(-3, -2).flatten(-2).to(request.stored) : result);
        }
    return there;
}

template <bool keep>
void scan_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const auto results = forward(torch::jit::last(*stack, count), keep);
    torch::jit::drop(*stack, count);
    for (const Tensor& result : results) stack->emplace_back(result);
}

void backward_boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const size_t count = op.schema().arguments().size();
    auto results = backward(torch::jit::last(*stack, count));
    torch::jit::drop(*stack, count);
    stack->emplace_back(std::move(results));
}

const std::string arguments =
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
    " Tensor? initial_state, Tensor? u2, Tensor? delta2, Tensor? A2, Tensor? B2, Tensor? C2, Tensor? D2, Tensor? z2,"
    " Tensor? delta_bias2, Tensor? initial_state2, bool softplus, bool reverse, int threads, int time_block,"
    " int channel_tile, int time_chunks, int exp, int isa)";

}  // namespace
}  // namespace scanlab

TORCH_LIBRARY(scanlab, m) {
    const auto& arguments = scanlab::arguments;
    m.def(("scan(" + arguments + " -> (Tensor out, Tensor last_state)").c_str());
    m.def(("scan_with_checkpoints(" + arguments + " -> (Tensor out, Tensor last_state, Tensor checkpoints)").c_str());
    m.def("note_fork() -> ()", &scanlab::note_fork);
    m.def(("scan_backward(Tensor grad_out, Tensor? grad_last, Tensor checkpoints, " + arguments + " -> Tensor[]")
              .c_str());
}

TORCH_LIBRARY_IMPL(scanlab, CPU, m) {
    m.impl("scan", torch::CppFunction::makeFromBoxedFunction<&scanlab::scan_boxed<false>>());
    m.impl("scan_with_checkpoints", torch::CppFunction::makeFromBoxedFunction<&scanlab::scan_boxed<true>>());
    m.impl("scan_backward", torch::CppFunction::makeFromBoxedFunction<&scanlab::backward_boxed>());
}
