// State updates between registers alone: the arithmetic of the scan with the exponential of its `exact` variant, no
// memory.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "cpu/denormals.h"
#include "cpu/math.h"

namespace {
using namespace scanlab::SCANLAB_TARGET;

// Keeps a value in its register and the compiler from knowing it.
SCANLAB_INLINE void opaque(Vec<float>& value) { asm volatile("" : "+v"(value)); }

// `seeds` has 4 x lanes numbers that are read once, and takes the sum of all states in the end. Returns the
// number of state updates.
int64_t updates(at::Tensor seeds, int64_t repeats) {
    const scanlab::FlushDenormals flush;  // as the kernel does
    constexpr int width = lanes<float>, states = 8;
    float* const memory = seeds.data_ptr<float>();
    Vec<float> delta = load(memory), A = load(memory + width), drive = load(memory + 2 * width),
               C = load(memory + 3 * width);
    Vec<float> h[states] = {}, sum[4] = {};
    for (int64_t repeat = 0; repeat < repeats; repeat++) {
#pragma GCC unroll 8
        for (int n = 0; n < states; n++) {
            opaque(A);
            opaque(drive);
            const Vec<float> decay = exp2<scanlab::Exp::exact>(Pack<float, 1>{delta * A}).of[0];
            h[n] = multiply_add(decay, h[n], drive * C);
            sum[n % 4] += h[n] * C;
        }
    }
    Vec<float> total = sum[0] + sum[1] + sum[2] + sum[3];
    for (const Vec<float>& state : h) total += state;
    store<float>(memory, total);
    return repeats * states * width;
}
}  // namespace

TORCH_LIBRARY(scanlab_ceiling, m) { m.def("updates(Tensor(a!) seeds, int repeats) -> int", &updates); }
