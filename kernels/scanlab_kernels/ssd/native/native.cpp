// Both passes as torch ops: arguments checked and described to the kernels, outputs allocated.
#include <cstring>
#include <memory>

#include "cpu/binding.h"
#include "cpu/checks.h"
#include "cpu/parallel.h"
#include "ssd/native/ssd.h"

namespace scanlab::ssd {
namespace {

#define SCANLAB_TABLE(isa) &kernels_##isa,
constexpr const Kernels* tables[] = {SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLE)};

Steps steps_of(const char* name, const Tensor& tensor, Shape shape, Dtype dtype) {
    if (!tensor) return {};
    expect(name, tensor, shape, dtype);
    const Shape strides = tensor.strides();
    return {tensor.data(), type_of(tensor), strides[0], strides[1], strides[2], strides[3]};
}
float* floats(const char* name, const Tensor& tensor, Shape shape) {
    expect(name, tensor, shape, Dtype::float32);
    return tensor.data<float>();
}
PerHead per_head(const char* name, const Tensor& tensor, int64_t heads) {
    if (!tensor) return {};
    return {floats(name, tensor, {heads}), 0, 0, tensor.stride(0), 0};
}
States states_of(const char* name, const Tensor& tensor, Shape shape) {
    if (!tensor) return {};
    const Shape strides = tensor.strides();
    return {floats(name, tensor, shape), strides[0], strides[1], strides[2], strides[3]};
}

// A call as the arguments of an op ask for it.
struct Request {
    Call call;
    const Kernels* kernels;
    Dtype dtype;

    Request(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C, const Tensor& D,
            const Tensor& z, const Tensor& dt_bias, const Tensor& initial_state, const Tensor& seq_idx, bool softplus,
            double lowest_dt, double highest_dt, int64_t chunk, int64_t task_heads, int64_t isa)
        : dtype(x.dtype()) {
        require(x.dim() == 4 && B.dim() == 4 && x.numel() > 0 && B.numel() > 0, "x ", x.sizes(), " and B ", B.sizes(),
                ": must have four axes, each of at least 1");
        require(chunk > 0 && chunk <= 4096 && task_heads > 0, "chunk=", chunk, ", task_heads=", task_heads);
        require(isa >= 0 && isa < int64_t(std::size(tables)) && tables[isa]->is_supported(),
                "this machine has no instruction set ", isa);
        kernels = tables[isa];
        call.batch = x.size(0), call.length = x.size(1), call.heads = x.size(2), call.head_dim = x.size(3);
        call.groups = B.size(2), call.state = B.size(3);
        call.softplus = softplus, call.lowest_dt = float(lowest_dt), call.highest_dt = float(highest_dt);
        call.chunk = int(std::min(chunk, call.length)), call.task_heads = int(std::min(task_heads, call.heads));
        require(call.heads % call.groups == 0, call.groups, " groups do not divide ", call.heads, " heads");
        call.x = steps_of("x", x, x.sizes(), dtype);
        call.z = steps_of("z", z, x.sizes(), dtype);
        call.B = steps_of("B", B, {call.batch, call.length, call.groups, call.state}, dtype);
        call.C = steps_of("C", C, B.sizes(), dtype);
        call.dt = {floats("dt", dt, {call.batch, call.length, call.heads}), dt.stride(0), dt.stride(1), dt.stride(2),
                   0};
        call.A = per_head("A", A, call.heads);
        call.dt_bias = per_head("dt_bias", dt_bias, call.heads);
        call.initial = states_of("initial_state", initial_state, state_shape());
        call.D = D && D.dim() == 2
                     ? PerHead{floats("D", D, {call.heads, call.head_dim}), 0, 0, D.stride(0), D.stride(1)}
                     : per_head("D", D, call.heads);
        if (seq_idx) {
            expect("seq_idx", seq_idx, {call.batch, call.length}, Dtype::int32);
            call.seq_idx = {seq_idx.data<int32_t>(), seq_idx.stride(0), seq_idx.stride(1)};
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

// The output and the last state, and where they are kept the states before each chunk and the output before the gate.
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                                                   const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                                   const OptionalTensor& dt_bias, const OptionalTensor& initial_state,
                                                   const OptionalTensor& seq_idx, bool softplus, double lowest_dt,
                                                   double highest_dt, int64_t chunk, int64_t task_heads, int64_t isa,
                                                   bool keeps_states) {
    Request request(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, softplus, lowest_dt, highest_dt, chunk,
                    task_heads, isa);
    Call& call = request.call;
    const Tensor out = empty_output(x.sizes(), request.dtype);
    const Tensor last = empty_output(request.state_shape(), Dtype::float32);
    const Tensor kept =
        empty_output(keeps_states ? request.chunk_state_shape() : std::vector<int64_t>{0}, Dtype::float32);
    const bool keeps_ungated = keeps_states && z;
    const Tensor ungated = empty_output(keeps_ungated ? x.sizes() : Shape{0}, request.dtype);
    call.out = steps_of("out", out, x.sizes(), request.dtype);
    if (keeps_ungated) call.ungated = steps_of("ungated", ungated, x.sizes(), request.dtype);
    call.final = states_of("final_state", last, request.state_shape());
    if (keeps_states) call.chunk_states = kept.data<float>();
    request.for_tasks(request.kernels->forward_bytes(call),
                      [&](const Task& task, void* workspace) { request.kernels->forward(call, task, workspace); });
    return {out, last, kept, ungated};
}

Tensor zeros(Shape shape) {
    const Tensor made = empty_output(shape, Dtype::float32);
    std::memset(made.data(), 0, numel(shape) * sizeof(float));
    return made;
}

// The gradients of x, dt, A, B, C, D, z, dt_bias and the initial state. Sums over batch or over tasks have an
// axis for it in front; all but those of x and z are float32.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const OptionalTensor& grad_final, const Tensor& chunk_states, const Tensor& ungated,
    const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
    const OptionalTensor& z, const OptionalTensor& dt_bias, const OptionalTensor& initial_state,
    const OptionalTensor& seq_idx, bool softplus, double lowest_dt, double highest_dt, int64_t chunk,
    int64_t task_heads, int64_t isa) {
    Request request(x, dt, A, B, C, D, z, dt_bias, initial_state, seq_idx, softplus, lowest_dt, highest_dt, chunk,
                    task_heads, isa);
    Call& call = request.call;
    call.chunk_states = floats("chunk_states", chunk_states, request.chunk_state_shape());
    require(chunk_states.is_contiguous(), "chunk_states must be as the forward pass left them");
    const std::vector<int64_t> parts = {tasks_of_group(call), call.batch, call.length, call.groups, call.state};
    if (z) call.ungated = steps_of("ungated", ungated, x.sizes(), request.dtype);
    const Tensor grad_x = empty_output(x.sizes(), request.dtype),
                 grad_z = empty_output(z ? x.sizes() : Shape{0}, request.dtype),
                 grad_dt = empty_output(dt.sizes(), Dtype::float32), grad_A = zeros({call.batch, call.heads}),
                 grad_B = empty_output(parts, Dtype::float32), grad_C = empty_output(parts, Dtype::float32),
                 grad_D = zeros({call.batch, call.heads, call.head_dim}),
                 grad_dt_bias = zeros({call.batch, call.heads}),
                 grad_initial = empty_output(request.state_shape(), Dtype::float32);
    Gradient gradient;
    gradient.out = steps_of("grad_out", grad_out, x.sizes(), request.dtype);
    gradient.final = states_of("grad_final", grad_final, request.state_shape());
    gradient.x = steps_of("grad_x", grad_x, x.sizes(), request.dtype);
    if (z) gradient.z = steps_of("grad_z", grad_z, x.sizes(), request.dtype);
    gradient.initial = states_of("grad_initial", grad_initial, request.state_shape());
    gradient.dt = grad_dt.data<float>(), gradient.A = grad_A.data<float>(), gradient.B = grad_B.data<float>();
    gradient.C = grad_C.data<float>(), gradient.D = grad_D.data<float>();
    gradient.dt_bias = grad_dt_bias.data<float>();
    request.for_tasks(request.kernels->backward_bytes(call), [&](const Task& task, void* workspace) {
        request.kernels->backward(call, gradient, task, workspace);
    });
    return {grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D, grad_z, grad_dt_bias, grad_initial};
}

}  // namespace
}  // namespace scanlab::ssd

SCANLAB_OPS(scanlab_ssd, library) {
    library.define(
        "forward(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias,"
        " Tensor? initial_state, Tensor? seq_idx, bool softplus, float lowest_dt, float highest_dt, int chunk,"
        " int task_heads, int isa, bool keeps_states)"
        " -> (Tensor out, Tensor final_state, Tensor chunk_states, Tensor ungated)");
    library.define(
        "backward(Tensor grad_out, Tensor? grad_final, Tensor chunk_states, Tensor ungated, Tensor x, Tensor dt,"
        " Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_state, Tensor? seq_idx,"
        " bool softplus, float lowest_dt, float highest_dt, int chunk, int task_heads, int isa) -> (Tensor,"
        " Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    library.define("note_fork() -> ()");
}

SCANLAB_KERNELS(scanlab_ssd, CPU, library) {
    library.implement("forward", scanlab::boxed<scanlab::ssd::forward>);
    library.implement("backward", scanlab::boxed<scanlab::ssd::backward>);
}

SCANLAB_KERNELS(scanlab_ssd, CompositeExplicitAutograd, library) {
    library.implement("note_fork", scanlab::boxed<scanlab::note_fork>);
}
