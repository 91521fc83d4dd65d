// One unit for each instruction set; the macro SCANLAB_TARGET says which.
#include "cpu/kernels.h"

#include "add_norm/kernel.h"
#include "causal_conv1d/backward.h"
#include "linear/gemv.h"
#include "mamba_front/kernel.h"
#include "state_update/kernel.h"

namespace scanlab::mixer {

#define SCANLAB_TEXT(name) #name
#define SCANLAB_STRING(name) SCANLAB_TEXT(name)
#define SCANLAB_JOIN(isa) kernels_##isa
#define SCANLAB_TABLE(isa) SCANLAB_JOIN(isa)

namespace {
namespace isa = SCANLAB_TARGET;
using isa::lanes;

int64_t conv_chunks(const Conv& conv) {
    return conv.wide ? isa::Tiling<double>(conv).chunks : isa::Tiling<float>(conv).chunks;
}
template <class T>
int64_t tasks_of(const Conv& conv) {
    const isa::Tiling<T> cut(conv);
    return conv.batch * cut.chunks * cut.blocks;
}
int64_t conv_tasks(const Conv& conv) { return conv.wide ? tasks_of<double>(conv) : tasks_of<float>(conv); }
void conv(const Conv& conv, int64_t begin, int64_t end) {
    return conv.wide ? isa::conv_forward<double>(conv, begin, end) : isa::conv_forward<float>(conv, begin, end);
}
void conv_backward(const Conv& conv, int64_t begin, int64_t end) {
    return conv.wide ? isa::conv_gradients<double>(conv, begin, end) : isa::conv_gradients<float>(conv, begin, end);
}

int64_t conv_update_tasks(const ConvUpdate& update) {
    const int64_t width = update.wide ? lanes<double> : lanes<float>;
    return update.batch * ((update.dim + width - 1) / width);
}
size_t conv_update_workspace(const ConvUpdate& update) {
    return (update.slots + 2 * update.length) * SCANLAB_VECTOR_BYTES;
}
void conv_update(const ConvUpdate& update, int64_t begin, int64_t end, void* workspace) {
    return update.wide ? isa::conv_step<double>(update, begin, end, workspace)
                       : isa::conv_step<float>(update, begin, end, workspace);
}

size_t norm_workspace(const Norm& norm) {
    return norm.wide ? isa::norm_workspace<double>(norm) : isa::norm_workspace<float>(norm);
}
void norm(const Norm& norm, int64_t begin, int64_t end, void* workspace) {
    return norm.wide ? isa::norm_forward<double>(norm, begin, end, workspace)
                     : isa::norm_forward<float>(norm, begin, end, workspace);
}
void norm_backward(const Norm& norm, int64_t begin, int64_t end, void* workspace) {
    return norm.wide ? isa::norm_gradients<double>(norm, begin, end, workspace)
                     : isa::norm_gradients<float>(norm, begin, end, workspace);
}

int64_t state_update_tasks(const StateUpdate& update) {
    return update.batch * update.heads * ((update.dim + isa::update_channels - 1) / isa::update_channels);
}
size_t state_update_workspace(const StateUpdate& update) {
    return update.wide ? isa::update_workspace<double>(update) : isa::update_workspace<float>(update);
}
void state_update(const StateUpdate& update, int64_t begin, int64_t end, void* workspace) {
    return update.wide ? isa::update_states<double>(update, begin, end, workspace)
                       : isa::update_states<float>(update, begin, end, workspace);
}

int64_t gemv_tasks(const Gemv& linear) { return (linear.features + isa::gemv_features - 1) / isa::gemv_features; }
void gemv(const Gemv& linear, int64_t begin, int64_t end) { return isa::multiply_gemv(linear, begin, end); }
}  // namespace

extern const Kernels SCANLAB_TABLE(SCANLAB_TARGET);
const Kernels SCANLAB_TABLE(SCANLAB_TARGET) = {
    .name = SCANLAB_STRING(SCANLAB_TARGET),
    .is_supported = is_supported,
    .conv_chunks = conv_chunks,
    .conv_tasks = conv_tasks,
    .conv = conv,
    .conv_backward = conv_backward,
    .conv_update_tasks = conv_update_tasks,
    .conv_update_workspace_bytes = conv_update_workspace,
    .conv_update = conv_update,
    .norm_workspace_bytes = norm_workspace,
    .norm = norm,
    .norm_backward = norm_backward,
    .state_update_tasks = state_update_tasks,
    .state_update_workspace_bytes = state_update_workspace,
    .state_update = state_update,
    .gemv_tasks = gemv_tasks,
    .gemv = gemv,
    .float32 = {is_supported, isa::multiply_packed<float>, isa::convolve_group<float>, isa::add_shares<float>, 4},
#if defined(__AVX512F__)
    .multiplies_bfloat16 = true,
#else
    .multiplies_bfloat16 = false,
#endif
};

}  // namespace scanlab::mixer
