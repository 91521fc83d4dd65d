// One decoding step of the scan as a torch op on CPU tensors.
#include "state_update/call.h"

namespace scanlab::mixer {

namespace {
// Tensors without heads stand for tensors with one head.
struct Heads {
    bool given;

    int64_t stride(const Tensor& tensor, int64_t axis) const { return given ? tensor.stride(axis) : 0; }
    // (batch, [heads,] dim), or ([heads,] dim) for weights
    StateUpdate::PerBatch channels(const char* name, const Tensor& tensor, Shape shape, bool weights = false) const {
        if (!tensor) return {};
        expect(name, tensor, shape);
        return {tensor.data(), type_of(tensor), weights ? 0 : tensor.stride(0), stride(tensor, weights ? 0 : 1),
                tensor.stride(-1)};
    }
    // (rows, [heads,] dim, state)
    StateUpdate::PerState states(const char* name, const Tensor& tensor, Shape shape) const {
        expect(name, tensor, shape);
        return {tensor.data(),     type_of(tensor),   tensor.stride(0),
                stride(tensor, 1), tensor.stride(-2), tensor.stride(-1)};
    }
    // ([heads,] dim, state)
    StateUpdate::PerState rates(const Tensor& tensor, Shape shape) const {
        expect("A", tensor, shape);
        return {tensor.data(), type_of(tensor), 0, stride(tensor, 0), tensor.stride(-2), tensor.stride(-1)};
    }
    // (batch, [groups,] state)
    StateUpdate::PerState projection(const char* name, const Tensor& tensor, Shape shape) const {
        expect(name, tensor, shape);
        return {tensor.data(), type_of(tensor), tensor.stride(0), stride(tensor, 1), 0, tensor.stride(-1)};
    }
};
}  // namespace

StateUpdateCall::StateUpdateCall(const Tensor& state, const Tensor& given_x, const Tensor& given_dt,
                                 const Tensor& given_A, const Tensor& given_B, const Tensor& given_C,
                                 const Tensor& given_D, const Tensor& given_z, const Tensor& given_dt_bias,
                                 const Tensor& out, bool softplus, const Tensor& given_rows, bool log_A)
    : state(state) {
    require(
        (state.dim() == 3 || state.dim() == 4) && given_x.dim() == state.dim() - 1 && given_B.dim() == given_x.dim(),
        "state (rows, [heads,] dim, state), x (batch, [heads,] dim) and B (batch, [groups,] state)");
    const Heads heads{given_x.dim() == 3};
    update.batch = given_x.size(0), update.dim = given_x.size(-1), update.state = state.size(-1);
    if (heads.given) update.heads = given_x.size(1), update.groups = given_B.size(1);
    require(update.groups > 0 && update.heads % update.groups == 0, update.groups, " groups do not divide ",
            update.heads, " heads");
    const Shape sizes = given_x.sizes();
    const std::vector<int64_t> own(sizes.begin() + 1, sizes.end());
    std::vector<int64_t> rates = own, all = own, projection = {update.batch, update.state};
    rates.push_back(update.state), all.push_back(update.state);
    all.insert(all.begin(), given_rows ? state.size(0) : update.batch);
    if (heads.given) projection.insert(projection.begin() + 1, update.groups);
    update.wide = is_wide({&state, &given_x, &given_A}), update.softplus = softplus, update.log_A = log_A;
    update.h = heads.states("state", state, all);
    expect_no_internal_overlap("state", state);
    const auto read = [&](const Tensor& tensor) -> const Tensor& {
        return kept.emplace_back(apart_from(state, tensor));
    };
    const auto channels = [&](const char* name, const Tensor& tensor, Shape shape, bool weights = false) {
        if (!tensor) return StateUpdate::PerBatch{};
        expect(name, tensor, shape);
        return heads.channels(name, read(tensor), shape, weights);
    };
    update.x = channels("x", given_x, sizes);
    update.dt = channels("dt", given_dt, sizes);
    update.z = channels("z", given_z, sizes);
    update.out = heads.channels("out", out, sizes);
    update.D = channels("D", given_D, own, true);
    update.dt_bias = channels("dt_bias", given_dt_bias, own, true);
    expect("A", given_A, rates);
    expect("B", given_B, projection);
    expect("C", given_C, projection);
    update.A = heads.rates(read(given_A), rates);
    update.B = heads.projection("B", read(given_B), projection);
    update.C = heads.projection("C", read(given_C), projection);
    update.rows = indices("state_batch_indices", given_rows, update.batch, kept.emplace_back());
    expect_rows("state_batch_indices", update.rows, update.batch, state.size(0));
}

void StateUpdateCall::run() {
    note_change(state);
    const Kernels& kernels = kernels_in_use();
    const int64_t elements = update.batch * update.heads * update.dim * update.state;
    spread(kernels.state_update_tasks(update), elements, kernels.state_update_workspace_bytes(update),
           [&](int64_t begin, int64_t end, void* workspace) { kernels.state_update(update, begin, end, workspace); });
}

namespace {

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                    const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
                    bool softplus, const OptionalTensor& rows, bool log_A) {
    const Tensor out = empty_output_like(x);
    StateUpdateCall(state, x, dt, A, B, C, D, z, dt_bias, out, softplus, rows, log_A).run();
    return out;
}

}  // namespace

SCANLAB_OPS(scanlab_mixer, library) {
    library.define(
        "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D,"
        " Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, bool log_A) -> Tensor");
}

SCANLAB_KERNELS(scanlab_mixer, CPU, library) { library.implement("selective_state_update", boxed<state_update>); }

}  // namespace scanlab::mixer
