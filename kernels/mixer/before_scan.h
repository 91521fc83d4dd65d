// From what a mixer projected in to what it scans: u, what is selected from it, and the step sizes.
//
// A few dozen steps at a time go all the way, so that the products find in the cache what was convolved.
#pragma once

#include "conv.h"
#include "packed_linear.h"

namespace scanlab::SCANLAB_ISA {

using mixer::BeforeScan;
using mixer::row_step;

// Tasks [begin, end) of row_step steps each, sequence after sequence.
template <class S>
void prepare_scan(const BeforeScan& before, int64_t begin, int64_t end) {
    const Conv& conv = before.conv;
    const Cut<float> cut(conv);
    const int64_t tasks = (conv.length + row_step - 1) / row_step, most = cut.steps / row_step;
    for (int64_t task = begin; task < end;) {
        const int64_t batch = task / tasks, first = task % tasks * row_step;
        const int64_t count = smaller(smaller(end - task, most), tasks - task % tasks);
        const int64_t stop = smaller(conv.length, first + count * row_step);
        for (int64_t block = 0; block < cut.blocks; block++)
            convolve_steps(conv, cut, Task(conv, cut, batch, 0, block), first, stop);
        const int64_t row = batch * conv.length + first, rows = batch * conv.length + stop;
        for (int d = 0; d < conv.directions; d++)
            for (const PackedLinear& linear : {before.select[d], before.step[d]})
                multiply_packed<S>(linear, row, rows, 0, panels_of(linear));
        task += count;
    }
}

}  // namespace scanlab::SCANLAB_ISA
