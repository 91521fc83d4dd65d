// Tasks on as many threads as torch's own ops would take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/threads.h"

// Since torch 2.10.
extern "C" __attribute__((weak)) AOTITorchError torch_get_num_threads(uint32_t* threads);

namespace scanlab {

inline int torch_threads() {
#if defined(_OPENMP)
    if (omp_in_parallel()) return 1;
    int threads = omp_get_max_threads();
#else
    int threads = 1;
#endif
    uint32_t asked;
    if (torch_get_num_threads && torch_get_num_threads(&asked) == 0) threads = int(asked);
    return threads;
}

namespace mixer {

// Runs tasks on torch's threads, none of them for less than about 20 us of work. Each takes a share of adjacent tasks.
template <class Run>
void spread(int64_t tasks, int64_t elements, const Run& run) {
    constexpr int64_t worth_a_thread = 32768;
    const int64_t grain = std::max<int64_t>(1, tasks * worth_a_thread / std::max<int64_t>(1, elements));
    if (tasks <= 0) return;
    const int64_t threads = std::min<int64_t>(torch_threads(), (tasks + grain - 1) / grain);
    const int64_t share = (tasks + threads - 1) / threads;
    on_threads(int(threads), [&](int64_t thread) {
        const int64_t begin = thread * share, end = std::min(begin + share, tasks);
        if (begin < end) run(begin, end);
    });
}

}  // namespace mixer
}  // namespace scanlab
