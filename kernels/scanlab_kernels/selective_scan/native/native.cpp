// The scan as torch ops: arguments checked, described to the kernel, outputs allocated.
#include "cpu/binding.h"
#include "cpu/checks.h"
#include "cpu/parallel.h"
#include "selective_scan/native/scan.h"

namespace scanlab {
namespace {

// In the order of ScanInputs.
enum { u_, delta_, A_, B_, C_, D_, z_, delta_bias_, initial_state_, tensors_per_direction };
constexpr const char* names[] = {"u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"};

Channels channels_of(const Tensor& tensor) {
    if (!tensor) return {};
    const Shape strides = tensor.strides();
    return {tensor.data(), strides[0], strides[1], strides[2]};
}

Weights weights_of(const Tensor& tensor) {
    if (!tensor) return {};
    const Shape strides = tensor.strides();
    return {tensor.data(), strides[0], strides.size() == 2 ? strides[1] : 0};
}

States states_of(const Tensor& tensor) {
    if (!tensor) return {};
    const Shape strides = tensor.strides();
    return {tensor.data(), strides[0], strides[1], strides[2]};
}

constexpr int64_t max_threads = 4096, max_setting = 1 << 20;

int number(const char* name, StableIValue value, int64_t low, int64_t high) {
    const auto given = Argument<int64_t>::take(value);
    require(given >= low && given <= high, name, "=", given, ": must be ", low, "..", high, ".");
    return int(given);
}

// As many threads as torch's own ops take, and no more than the work is worth.
int threads_for(const Scan& scan) {
    const int most = torch_threads();
    return most == 1 ? 1 : int(std::min<int64_t>(most, threads_worth(scan)));
}

// The threads that such a scan takes now where it names none, and what decides that: the work of one thread and the
// time of handing work over, in nanoseconds.
std::tuple<int64_t, int64_t, int64_t> automatic_threads(int64_t batch, int64_t dim, int64_t length, int64_t state,
                                                        int64_t directions, bool wide, bool complex) {
    Scan scan;
    scan.batch = batch, scan.dim = dim, scan.length = length, scan.state = state, scan.directions = int(directions);
    scan.type = wide ? Type::float64 : Type::float32, scan.complex = complex, scan.isa = best_isa();
    return {threads_for(scan), int64_t(work_ns(scan)), handover_ns()};
}

// A scan as the arguments of an op ask for it: twice nine tensors, then softplus, reverse, threads, time_block,
// channel_tile, time_chunks, exp, isa. Holds on to the tensors that the scan points to.
struct Request {
    Scan scan;
    Dtype stored, real, weight;
    Tensor inputs[2][tensors_per_direction];

    explicit Request(const StableIValue* arguments) {
        for (int d = 0; d < 2; d++)
            for (int i = 0; i < tensors_per_direction; i++, arguments++)
                inputs[d][i] =
                    d == 0 && i <= C_ ? Argument<Tensor>::take(*arguments) : Argument<OptionalTensor>::take(*arguments);
        const Tensor &u = inputs[0][u_], &A = inputs[0][A_];
        const Shape sizes = u.sizes(), rates = A.sizes();
        require(sizes.size() == 3 && numel(sizes) > 0, "u is ", sizes,
                ": must be (batch, dim, length), none of them 0.");
        require(rates.size() == 2 && rates[1] >= 1, "A is ", rates, ": must be (dim, state).");
        stored = u.dtype(), weight = A.dtype();
        scan.type = type_of(u);
        real = stored == Dtype::float64 ? Dtype::float64 : Dtype::float32;
        scan.complex = weight == Dtype::complex64 || weight == Dtype::complex128;
        weight = !scan.complex ? real : real == Dtype::float64 ? Dtype::complex128 : Dtype::complex64;
        scan.batch = sizes[0], scan.dim = sizes[1], scan.length = sizes[2], scan.state = rates[1];
        scan.directions = inputs[1][u_] ? 2 : 1;
        scan.softplus = Argument<bool>::take(arguments[0]);
        scan.threads = number("threads", arguments[2], 0, max_threads);
        scan.time_block = number("time_block", arguments[3], 1, max_setting);
        scan.channel_tile = number("channel_tile", arguments[4], 1, max_setting);
        scan.time_chunks = number("time_chunks", arguments[5], 1, max_setting);
        require(scan.time_chunks == 1 || scan.directions == 1, "time_chunks is ", scan.time_chunks,
                ": must be 1 with two directions.");
        scan.exp = Exp(number("exp", arguments[6], int64_t(Exp::fast), int64_t(Exp::exact)));
        scan.isa = Isa(number("isa", arguments[7], 0, int64_t(best_isa())));
        if (scan.threads == 0) scan.threads = threads_for(scan);
        for (int d = 0; d < scan.directions; d++) describe(d, Argument<bool>::take(arguments[1]));
    }

    void describe(int d, bool reverse) {
        const auto& tensors = inputs[d];
        require(tensors[delta_] && tensors[A_] && tensors[B_] && tensors[C_], "direction ", d,
                " lacks one of delta, A, B and C.");
        for (int i : {u_, delta_, z_})
            if (tensors[i]) expect(names[i], tensors[i], {scan.batch, scan.dim, scan.length}, stored);
        for (int i : {D_, delta_bias_})
            if (tensors[i]) expect(names[i], tensors[i], {scan.dim}, real);
        expect("A", tensors[A_], {scan.dim, scan.state}, weight);
        if (tensors[initial_state_])
            expect("initial_state", tensors[initial_state_], {scan.batch, scan.dim, scan.state}, weight);
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
        const Shape sizes = tensor.sizes(), strides = tensor.strides();
        if (sizes.size() == 2) {
            expect(name, tensor, {scan.dim, scan.state}, weight);
            return {tensor.data(), true, 0, 0, strides[0], strides[1], 0};
        }
        const int64_t columns = scan.length * parts();
        if (sizes.size() == 3) {
            require(scan.groups == 1, name, " has no groups: must have ", scan.groups, ".");
            expect(name, tensor, {scan.batch, scan.state, columns}, stored);
            return {tensor.data(), false, strides[0], 0, 0, strides[1], strides[2]};
        }
        require(sizes.size() == 4, name, " has ", int64_t(sizes.size()), " axes: must have 2, 3 or 4.");
        const int64_t groups = sizes[1];
        require(groups > 0 && scan.dim % groups == 0 && (scan.groups == 1 || scan.groups == groups), name, " has ",
                groups, " groups: must divide dim ", scan.dim, " and be as many in B and in C.");
        scan.groups = groups;
        expect(name, tensor, {scan.batch, groups, scan.state, columns}, stored);
        return {tensor.data(), false, strides[0], strides[1], 0, strides[2], strides[3]};
    }

    int64_t parts() const { return scan.complex ? 2 : 1; }

    std::vector<int64_t> last_state_sizes() const {
        std::vector<int64_t> sizes = {scan.batch, scan.dim, scan.state};
        if (scan.directions == 2) sizes.insert(sizes.begin(), 2);
        return sizes;
    }
    std::vector<int64_t> checkpoint_sizes() const {
        return {scan.directions, scan.batch, blocks(scan), scan.state * parts(), scan.dim};
    }
    // The last states, or their gradients, of one direction.
    States of_direction(const Tensor& states, int d) const {
        if (scan.directions == 1) return states_of(states);
        const Shape strides = states.strides();
        return {states.data<char>() + d * strides[0] * int64_t(states.element_size()), strides[1], strides[2],
                strides[3]};
    }
};

// The results are out, last_state and, where they are kept, the checkpoints.
template <bool keep>
void forward(StableIValue* stack, uint64_t, uint64_t) {
    Request request(stack);
    Scan& scan = request.scan;
    Tensor out = empty_output_like(request.inputs[0][u_]), checkpoints,
           last_state = empty_output(request.last_state_sizes(), request.weight);
    scan.out = channels_of(out);
    for (int d = 0; d < scan.directions; d++) scan.direction[d].last = request.of_direction(last_state, d);
    if (keep) checkpoints = empty_output(request.checkpoint_sizes(), request.real);
    scan.checkpoints = checkpoints.data();
    run(scan);
    *stack++ = given(std::move(out)), *stack++ = given(std::move(last_state));
    if (keep) *stack = given(std::move(checkpoints));
}

// The gradient of a varying B or C, which is (..., state, length x parts), from how it is written: step after step, as
// (..., length, state, parts) in the arithmetic type.
Tensor by_state(const Tensor& by_time, const Tensor& like, int64_t parts) {
    std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end()), strides = contiguous_strides(sizes);
    const size_t last = sizes.size() - 1;
    strides[last - 1] = parts, strides[last] = sizes[last - 1] * parts;
    if (parts == 1) {
        const Tensor view = by_time.strided(sizes, strides);
        if (view.dtype() == like.dtype()) return view;
        const Tensor rounded = empty_output(sizes, strides, like.dtype());
        rounded.copy_from(view);
        return rounded;
    }
    const Tensor whole = empty_output(sizes, like.dtype());
    sizes[last] /= parts, sizes.push_back(parts), strides.push_back(1);
    whole.strided(sizes, contiguous_strides(sizes)).copy_from(by_time.strided(sizes, strides));
    return whole;
}

// The results are the gradients of the tensors, none where there is no tensor.
void backward(StableIValue* stack, uint64_t, uint64_t) {
    const Tensor grad_out = Argument<Tensor>::take(stack[0]), grad_last = Argument<OptionalTensor>::take(stack[1]),
                 checkpoints = Argument<Tensor>::take(stack[2]);
    Request request(stack + 3);
    Scan& scan = request.scan;
    expect("grad_out", grad_out, {scan.batch, scan.dim, scan.length}, request.stored);
    expect("checkpoints", checkpoints, request.checkpoint_sizes(), request.real);
    require(checkpoints.is_contiguous(), "checkpoints must be as the scan left them.");
    if (grad_last) expect("grad_last", grad_last, request.last_state_sizes(), request.weight);
    scan.checkpoints = checkpoints.data();

    Gradient gradient;
    gradient.out = channels_of(grad_out);
    const Tensor terms = empty_output({int64_t(terms_bytes(scan))}, Dtype::uint8);
    gradient.terms = terms.data();
    Tensor results[2][tensors_per_direction];
    for (int d = 0; d < scan.directions; d++) {
        const auto& tensors = request.inputs[d];
        auto& of = results[d];
        for (int i : {u_, delta_, z_})
            if (tensors[i]) of[i] = empty_output_like(tensors[i]);
        for (int i : {A_, D_, delta_bias_, initial_state_})
            if (tensors[i]) of[i] = empty_output(tensors[i].sizes(), tensors[i].dtype());
        for (int i : {B_, C_})
            of[i] = empty_output(tensors[i].sizes(), tensors[i].dim() == 2 ? request.weight : request.real);
        DirectionGradient& to = gradient.direction[d];
        to.u = channels_of(of[u_]), to.delta = channels_of(of[delta_]), to.z = channels_of(of[z_]);
        to.A = of[A_].data(), to.B = of[B_].data(), to.C = of[C_].data(), to.D = of[D_].data();
        to.delta_bias = of[delta_bias_].data(), to.initial = states_of(of[initial_state_]);
        if (grad_last) to.last = request.of_direction(grad_last, d);
    }
    run_backward(scan, gradient);

    for (int d = 0; d < 2; d++)
        for (int i = 0; i < tensors_per_direction; i++) {
            Tensor& result = results[d][i];
            if ((i == B_ || i == C_) && result && result.dim() > 2)
                result = by_state(result, request.inputs[d][i], request.parts());
            *stack++ = given(std::move(result));
        }
}

const std::string arguments =
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias,"
    " Tensor? initial_state, Tensor? u2, Tensor? delta2, Tensor? A2, Tensor? B2, Tensor? C2, Tensor? D2, Tensor? z2,"
    " Tensor? delta_bias2, Tensor? initial_state2, bool softplus, bool reverse, int threads, int time_block,"
    " int channel_tile, int time_chunks, int exp, int isa)";
const std::string gradients = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor";

}  // namespace
}  // namespace scanlab

SCANLAB_OPS(scanlab, library) {
    using scanlab::arguments, scanlab::gradients;
    library.define("scan(" + arguments + " -> (Tensor out, Tensor last_state)");
    library.define("scan_with_checkpoints(" + arguments + " -> (Tensor out, Tensor last_state, Tensor checkpoints)");
    library.define("scan_backward(Tensor grad_out, Tensor? grad_last, Tensor checkpoints, " + arguments + " -> (" +
                   gradients + ", " + gradients + ")");
    library.define("note_fork() -> ()");
    library.define(
        "automatic_threads(int batch, int dim, int length, int state, int directions, bool wide, bool complex)"
        " -> (int threads, int work_ns, int handover_ns)");
}

SCANLAB_KERNELS(scanlab, CPU, library) {
    library.implement("scan", scanlab::forward<false>);
    library.implement("scan_with_checkpoints", scanlab::forward<true>);
    library.implement("scan_backward", scanlab::backward);
}

SCANLAB_KERNELS(scanlab, CompositeExplicitAutograd, library) {
    library.implement("note_fork", scanlab::boxed<scanlab::note_fork>);
    library.implement("automatic_threads", scanlab::boxed<scanlab::automatic_threads>);
}
