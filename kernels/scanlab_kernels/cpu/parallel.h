// Tasks on as many threads as torch's own ops would take.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <memory>

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

// How tasks are shared out: each of torch's threads gets at least as many elements as in torch's own loops, whose grain
// (at::internal::GRAIN_SIZE) this is. It is no choice made on one machine: these ops stand in for torch's, and take
// threads where those would. Callers weigh `elements` by the loops of torch that an element stands for. The selective
// scan, which replaces no single loop, measures its work and its hand-over instead.
struct Shares {
    int64_t tasks, threads, share;

    Shares(int64_t tasks, int64_t elements) : tasks(tasks) {
        constexpr int64_t grain_of_torch = 32768;
        const int64_t grain = std::max<int64_t>(1, tasks * grain_of_torch / std::max<int64_t>(1, elements));
        threads = std::min<int64_t>(torch_threads(), (tasks + grain - 1) / grain);
        share = threads > 0 ? (tasks + threads - 1) / threads : 0;
    }

    // Calls run(thread, begin, end) for a share of adjacent tasks on each thread.
    template <class Run>
    void run(const Run& run) const {
        if (tasks <= 0) return;
        on_threads(int(threads), [&](int64_t thread) {
            const int64_t begin = thread * share, end = std::min(begin + share, tasks);
            if (begin < end) run(thread, begin, end);
        });
    }
};

template <class Run>
void spread(int64_t tasks, int64_t elements, const Run& run) {
    Shares(tasks, elements).run([&](int64_t, int64_t begin, int64_t end) { run(begin, end); });
}
// The same with memory for each thread, which is allocated before the first task runs.
template <class Run>
void spread(int64_t tasks, int64_t elements, size_t workspace_bytes, const Run& run) {
    const Shares shares(tasks, elements);
    const size_t each = (workspace_bytes + 63) / 64 * 64;
    const auto workspace = std::make_unique_for_overwrite<char[]>(each * std::max<int64_t>(shares.threads, 0));
    shares.run([&](int64_t thread, int64_t begin, int64_t end) { run(begin, end, workspace.get() + each * thread); });
}

}  // namespace mixer
}  // namespace scanlab
