// Both passes as torch ops: arguments checked and described to the kernels, outputs allocated.
#include <torch/library.h>

#include "cpu/allocator.h"
#include "cpu/arguments.h"
#include "cpu/parallel.h"
#include "ssd/native/ssd.h"

namespace scanlab::ssd {
namespace {

#define SCANLAB_TABLE(isa) &kernels_##isa,
constexpr const Kernels* tables[] = {SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLE)};

Steps steps_of(const char* name, const Tensor& tensor, at::IntArrayRef shape, at::ScalarType type) {
    if (!tensor.defined()) return {};
    expect(name, tensor, shape, type);
    return {const_cast<void*>(tensor.const_data_ptr()),
            type_of(tensor),
            tensor.stride(0),
            tensor.stride(1),
            tensor.stride(2),
            tensor.stride(3)};
}
float* floats(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    expect(name, tensor, shape, at::kFloat);
    return static_cast<float*>(const_cast<void*>(tensor.const_data_ptr()));
}
PerHead per_head(const char* name, const Tensor& tensor, int64_t heads) {
    if (!tensor.defined()) return {};
    return {floats(name, tensor, {heads}), 0, 0, tensor.stride(0), 0};
}
States states_of(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    if (!tensor.defined()) return {};
    return {floats(name, tensor, shape), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// A call as the arguments of an op ask for it.
struct Request {
    Call call;
    const Kernels* kernels;
    at::ScalarType type;

    Request(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
            const OptionalTensor& given_D, const OptionalTensor& z, const OptionalTensor& dt_bias,
            const OptionalTensor& initial_state, const OptionalTensor& given_seq_idx, bool softplus, double lowest_dt,
            double highest_dt, int64_t chunk, int64_t task_heads, int64_t isa)
        : type(x.scalar_type()) {
        TORCH_CHECK_VALUE(x.dim() == 4 && B.dim() == 4 && x.numel() > 0 && B.numel() > 0, "x ", x.sizes(), " and B ",
                          B.sizes(), ": must have four axes, each of at least 1");
        TORCH_CHECK_VALUE(chunk > 0 && chunk <= 4096 && task_heads > 0, "chunk=", chunk, ", task_heads=", task_heads);
        TORCH_CHECK_VALUE(isa >= 0 && isa < int64_t(std::size(tables)) && tables[isa]->is_supported(),
                          "this machine has no instruction set ", isa);
        kernels = tables[isa];
        call.batch = x.size(0), call.length = x.size(1), call.heads = x.size(2), call.head_dim = x.size(3);
        call.groups = B.size(2), call.state = B.size(3);
        call.softplus = softplus, call.lowest_dt = float(lowest_dt), call.highest_dt = float(highest_dt);
        call.chunk = int(std::min(chunk, call.length)), call.task_heads = int(std::min(task_heads, call.heads));
        TORCH_CHECK_VALUE(call.heads % call.groups == 0, call.groups, " groups do not divide ", call.heads, " heads");
        call.x = steps_of("x", x, x.sizes(), type);
        call.z = steps_of("z", value_of(z), x.sizes(), type);
        call.B = steps_of("B", B, {call.batch, call.length, call.groups, call.state}, type);
        call.C = steps_of("C", C, B.sizes(), type);
        const float* steps = floats("dt", dt, {call.batch, call.length, call.heads});
        call.dt = {const_cast<float*>(steps), dt.stride(0), dt.stride(1), dt.stride(2), 0};
        call.A = per_head("A", A, call.heads);
        call.dt_bias = per_head("dt_bias", value_of(dt_bias), call.heads);
        call.initial = states_of("initial_state", value_of(initial_state), state_shape());
        const Tensor D = value_of(given_D), seq_idx = value_of(given_seq_idx);
        call.D = D.defined() && D.dim() == 2
                     ? PerHead{floats("D", D, {call.heads, call.head_dim}), 0, 0, D.stride(0), D.stride(1)}
                     : per_head("D", D, call.heads);
        if (seq_idx.defined()) {
            expect("seq_idx", seq_idx, {call.batch, call.length}, at::kInt);
            call.seq_idx = {seq_idx.const_data_ptr<int32_t>(), seq_idx.stride(0), seq_idx.stride(1)};
        }
    }

    std::vector<int64_t> state_shape() const { return {call.batch, call.heads, call.head_dim, call.state}; }
    std::vector<int64_t> chunk_state_shape() const {
        return {call.batch, chunks(call), call.heads, call.state, call.head_dim};
    }

    template <class Run>
    void for_tasks(size_t workspace_bytes, const Run& run) const {
        const int64_t updates = call.batch * call.length * call.heads * call.head_dim * call.state;
        mixer::spread(tasks(call), updates, [&](int64_t begin, int64_t end) {
            const auto workspace = std::make_unique_for_overwrite<char[]>(workspace_bytes);
            for (int64_t task = begin; task < end; task++) run(task_at(call, task), workspace.get());
        });
    }
};

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// The output, the last state, and the states before each chunk where they are kept.
Outputs forward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
                const OptionalTensor& initial_state, const OptionalTensor& seq_idx, bool softplus, double lowest_dt,
                double highest_dt, int64_t chunk, int64_t task_heads, int64_t isa, bool keeps_states) {
    Request request(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, softplus, lowest_dt, highest_dt, chunk,
                    task_heads, isa);
    Call& call = request.call;
    const Tensor out = empty_output(x.sizes(), request.type), last = empty_output(request.state_shape(), at::kFloat);
    const Tensor kept = empty_output(keeps_states ? request.chunk_state_shape() : std::vector<int64_t>{0}, at::kFloat);
    call.out = steps_of("out", out, x.sizes(), request.type);
    call.final = states_of("final_state", last, request.state_shape());
    if (keeps_states) call.chunk_states = static_cast<float*>(kept.data_ptr());
    request.for_tasks(request.kernels->forward_bytes(call),
                      [&](const Task& task, void* workspace) { request.kernels->forward(call, task, workspace); });
    return {out, last, kept};
}

// The gradients of x, dt, A, B, C, D, dt_bias and the initial state. What is summed over batch or over tasks has an
// axis for it in front; all but that of x are float32.
std::vector<Tensor> backward(const Tensor& grad_out, const OptionalTensor& grad_final, const Tensor& chunk_states,
                             const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                             const OptionalTensor& D, const OptionalTensor& dt_bias,
                             const OptionalTensor& initial_state, const OptionalTensor& seq_idx, bool softplus,
                             double lowest_dt, double highest_dt, int64_t chunk, int64_t task_heads, int64_t isa) {
    Request request(x, dt, A, B, C, D, {}, dt_bias, initial_state, seq_idx, softplus, lowest_dt, highest_dt, chunk,
                    task_heads, isa);
    Call& call = request.call;
    call.chunk_states = floats("chunk_states", chunk_states, request.chunk_state_shape());
    TORCH_CHECK_VALUE(chunk_states.is_contiguous(), "chunk_states must be as the forward pass left them");
    const auto zeros = [](at::IntArrayRef shape) { return at::zeros(shape, at::kFloat); };
    const std::vector<int64_t> parts = {tasks_of_group(call), call.batch, call.length, call.groups, call.state};
    const std::vector<Tensor> results = {
        empty_output(x.sizes(), request.type), empty_output(dt.sizes(), at::kFloat),
        zeros({call.batch, call.heads}),       empty_output(parts, at::kFloat),
        empty_output(parts, at::kFloat),       zeros({call.batch, call.heads, call.head_dim}),
        zeros({call.batch, call.heads}),       empty_output(request.state_shape(), at::kFloat)};
    const auto memory = [&](int i) { return static_cast<float*>(results[i].data_ptr()); };
    Gradient gradient;
    gradient.out = steps_of("grad_out", grad_out, x.sizes(), request.type);
    gradient.final = states_of("grad_final", value_of(grad_final), request.state_shape());
    gradient.x = steps_of("grad_x", results[0], x.sizes(), request.type);
    gradient.dt = memory(1), gradient.A = memory(2), gradient.B = memory(3), gradient.C = memory(4);
    gradient.D = memory(5), gradient.dt_bias = memory(6);
    gradient.initial = states_of("grad_initial", results[7], request.state_shape());
    request.for_tasks(request.kernels->backward_bytes(call), [&](const Task& task, void* workspace) {
        request.kernels->backward(call, gradient, task, workspace);
    });
    return results;
}

}  // namespace
}  // namespace scanlab::ssd

TORCH_LIBRARY(scanlab_ssd, library) {
    library.def(
        "forward(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias,"
        " Tensor? initial_state, Tensor? seq_idx, bool softplus, float lowest_dt, float highest_dt, int chunk,"
        " int task_heads, int isa, bool keeps_states) -> (Tensor out, Tensor final_state, Tensor chunk_states)");
    library.def(
        "backward(Tensor grad_out, Tensor? grad_final, Tensor chunk_states, Tensor x, Tensor dt, Tensor A, Tensor B,"
        " Tensor C, Tensor? D, Tensor? dt_bias, Tensor? initial_state, Tensor? seq_idx, bool softplus,"
        " float lowest_dt, float highest_dt, int chunk, int task_heads, int isa) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(scanlab_ssd, CPU, library) {
    library.impl("forward", &scanlab::ssd::forward);
    library.impl("backward", &scanlab::ssd::backward);
}
