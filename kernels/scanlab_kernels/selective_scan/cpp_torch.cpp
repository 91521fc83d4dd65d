// The loop over time in C++, each step a few ATen operations: the rest of its time is torch's own dispatch.

#include <torch/library.h>

namespace {

// The contract of a solver in recurrence.py: time first, drives in `states`, which become the states.
void solve(const at::Tensor& decay, at::Tensor states) {
    TORCH_CHECK_VALUE(decay.dim() >= 1 && states.dim() >= 1 && decay.size(0) == states.size(0), "decay is ",
                      decay.sizes(), " and states ", states.sizes(),
                      ": must have as many time steps, along the first axis");
    const auto rates = decay.unbind();
    auto steps = states.unbind();
    for (size_t t = 1; t < steps.size(); ++t) steps[t].addcmul_(rates[t], steps[t - 1]);
}

}  // namespace

TORCH_LIBRARY(scanlab_cpp_torch, library) { library.def("solve(Tensor decay, Tensor(a!) states) -> ()"); }

TORCH_LIBRARY_IMPL(scanlab_cpp_torch, CPU, library) { library.impl("solve", &solve); }
