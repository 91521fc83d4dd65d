// One unit for each instruction set: the macro SCANLAB_TARGET says which.
#include "ssd/native/backward.h"
#include "ssd/native/forward.h"

namespace scanlab::ssd {

#define SCANLAB_JOIN(isa) kernels_##isa
#define SCANLAB_NAME(isa) SCANLAB_JOIN(isa)

namespace {
using namespace SCANLAB_TARGET;

// Of the largest task.
Task any_task(const Call& call) { return {0, 0, 0, call.task_heads}; }

size_t forward_bytes(const Call& call) {
    Arena counted;
    Forward(call, any_task(call), counted);
    return counted.used * sizeof(float);
}
void forward(const Call& call, const Task& task, void* workspace) {
    Arena arena{static_cast<float*>(workspace)};
    Forward(call, task, arena).run();
}
size_t backward_bytes(const Call& call) {
    Arena counted;
    Backward(call, {}, any_task(call), counted);
    return counted.used * sizeof(float);
}
void backward(const Call& call, const Gradient& gradient, const Task& task, void* workspace) {
    Arena arena{static_cast<float*>(workspace)};
    Backward(call, gradient, task, arena).run();
}
}  // namespace

const Kernels SCANLAB_NAME(SCANLAB_TARGET) = {is_supported, forward_bytes, forward, backward_bytes, backward};

}  // namespace scanlab::ssd
