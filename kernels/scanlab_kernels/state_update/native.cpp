// One decoding step of the scan as a torch op on CPU tensors.
#include "cpu/library_autograd.h"
#include "state_update/call.h"

namespace scanlab::mixer {

namespace {
// Tensors without heads stand for tensors with one head.
struct Heads {
    bool given;

    int64_t stride(const Tensor& tensor, int64_t axis) const { return given ? tensor.stride(axis) : 0; }
    // (batch, [heads,] dim), or ([heads,] dim) for weights
    StateUpdate::PerBatch channels(const char* name, const Tensor& tensor, at::IntArrayRef shape,
                                   bool weights = false) const {
        if (!tensor.defined()) return {};
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()), type_of(tensor), weights ? 0 : tensor.stride(0),
                stride(tensor, weights ? 0 : 1), tensor.stride(-1)};
    }
    // (rows, [heads,] dim, state)
    StateUpdate::PerState states(const char* name, const Tensor& tensor, at::IntArrayRef shape) const {
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()),
                type_of(tensor),
                tensor.stride(0),
                stride(tensor, 1),
                tensor.stride(-2),
                tensor.stride(-1)};
    }
    // ([heads,] dim, state)
    StateUpdate::PerState rates(const Tensor& tensor, at::IntArrayRef shape) const {
        expect("A", tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()),
                type_of(tensor),
                0,
                stride(tensor, 0),
                tensor.stride(-2),
                tensor.stride(-1)};
    }
    // (batch, [groups,] state)
    StateUpdate::PerState projection(const char* name, const Tensor& tensor, at::IntArrayRef shape) const {
        expect(name, tensor, shape);
        return {const_cast<void*>(tensor.const_data_ptr()),
                type_of(tensor),
                tensor.stride(0),
                stride(tensor, 1),
                0,
                tensor.stride(-1)};
    }
};
}  // namespace

StateUpdateCall::StateUpdateCall(const Tensor& state, const Tensor& given_x, const Tensor& given_dt,
                                 const Tensor& given_A, const Tensor& given_B, const Tensor& given_C,
                                 const OptionalTensor& given_D, const OptionalTensor& given_z,
                                 const OptionalTensor& given_dt_bias, const Tensor& out, bool softplus,
                                 const OptionalTensor& given_rows, bool log_A)
    : state(state) {
    TORCH_CHECK_VALUE(
        (state.dim() == 3 || state.dim() == 4) && given_x.dim() == state.dim() - 1 && given_B.dim() == given_x.dim(),
        "state (rows, [heads,] dim, state), x (batch, [heads,] dim) and B (batch, [groups,] state)");
    const Heads heads{given_x.dim() == 3};
    update.batch = given_x.size(0), update.dim = given_x.size(-1), update.state = state.size(-1);
    if (heads.given) update.heads = given_x.size(1), update.groups = given_B.size(1);
    TORCH_CHECK_VALUE(update.groups > 0 && update.heads % update.groups == 0, update.groups, " groups do not divide ",
                      update.heads, " heads");
    const at::DimVector own(given_x.sizes().begin() + 1, given_x.sizes().end());
    at::DimVector rates = own, all = own;
    rates.push_back(update.state), all.push_back(update.state);
    all.insert(all.begin(), given_rows ? state.size(0) : update.batch);
    at::DimVector projection = {update.batch, update.state};
    if (heads.given) projection.insert(projection.begin() + 1, update.groups);
    update.wide = is_wide({&state, &given_x, &given_A}), update.softplus = softplus, update.log_A = log_A;
    update.h = heads.states("state", state, all);
    expect_no_internal_overlap("state", state);
    const auto read = [&](const Tensor& tensor) -> const Tensor& {
        return kept.emplace_back(apart_from(state, tensor));
    };
    const auto channels = [&](const char* name, const Tensor& tensor, at::IntArrayRef shape, bool weights = false) {
        if (!tensor.defined()) return StateUpdate::PerBatch{};
        expect(name, tensor, shape);
        return heads.channels(name, read(tensor), shape, weights);
    };
    update.x = channels("x", given_x, given_x.sizes());
    update.dt = channels("dt", given_dt, given_x.sizes());
    update.z = channels("z", value_of(given_z), given_x.sizes());
    update.out = heads.channels("out", out, given_x.sizes());
    update.D = channels("D", value_of(given_D), own, true);
    update.dt_bias = channels("dt_bias", value_of(given_dt_bias), own, true);
    expect("A", given_A, rates);
    expect("B", given_B, projection);
    expect("C", given_C, projection);
    update.A = heads.rates(read(given_A), rates);
    update.B = heads.projection("B", read(given_B), projection);
    update.C = heads.projection("C", read(given_C), projection);
    kept.push_back(value_of(given_rows));
    update.rows = indices("state_batch_indices", kept.back(), update.batch);
    expect_rows("state_batch_indices", update.rows, update.batch, state.size(0));
}

void StateUpdateCall::run() {
    state.unsafeGetTensorImpl()->bump_version();
    const Kernels& kernels = kernels_in_use();
    const int64_t elements = update.batch * update.heads * update.dim * update.state;
    spread(kernels.state_update_tasks(update), elements, [&](int64_t begin, int64_t end) {
        const auto workspace = std::make_unique_for_overwrite<char[]>(kernels.state_update_workspace_bytes(update));
        kernels.state_update(update, begin, end, workspace.get());
    });
}

namespace {

Tensor state_update_output(const Tensor&, const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, bool,
                           const OptionalTensor&, bool) {
    return at::empty_like(x);
}

Tensor state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                    const Tensor& C, const OptionalTensor& D, const OptionalTensor& z, const OptionalTensor& dt_bias,
                    bool softplus, const OptionalTensor& rows, bool log_A) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = at::empty_like(x);
    StateUpdateCall(state, x, dt, A, B, C, D, z, dt_bias, out, softplus, rows, log_A).run();
    return out;
}

constexpr char update_name[] = "scanlab_mixer::selective_state_update";

}  // namespace

TORCH_LIBRARY_FRAGMENT(scanlab_mixer, library) {
    library.def(
        "selective_state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D,"
        " Tensor? z, Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices, bool log_A) -> Tensor");
}

TORCH_LIBRARY_IMPL(scanlab_mixer, CPU, library) { library.impl("selective_state_update", &state_update); }

TORCH_LIBRARY_IMPL(scanlab_mixer, Meta, library) {
    library.impl("selective_state_update", &Meta<state_update_output>::run);
}

TORCH_LIBRARY_IMPL(scanlab_mixer, Autograd, library) {
    library.impl("selective_state_update", &Step<update_name, decltype(state_update)>::run);
}

}  // namespace scanlab::mixer
