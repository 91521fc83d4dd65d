// Tasks on torch's threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "cpu/denormals.h"

namespace scanlab::mixer {

// Runs tasks on torch's threads, none of them for less than about 20 us of work.
template <class Run>
void spread(int64_t tasks, int64_t elements, const Run& run) {
    constexpr int64_t worth_a_thread = 32768;
    const int64_t grain = std::max<int64_t>(1, tasks * worth_a_thread / std::max<int64_t>(1, elements));
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        run(begin, end);
    });
}

}  // namespace scanlab::mixer
