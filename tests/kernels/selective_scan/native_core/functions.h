// The functions of one instruction set, over arrays whose length is a multiple of 32.
#pragma once

#include <cstdint>

namespace scanlab::test {

template <class T>
using Map = void (*)(const T* x, T* y, int count);

struct Functions {
    const char* isa;
    Map<float> exp_fast, exp_exact, softplus, softplus_slope, sigmoid, sine, cosine;  // exp_*: 2^x
    Map<double> exp_double, softplus_double, softplus_slope_double, sigmoid_double, sine_double, cosine_double;
    void (*from_float16)(const uint16_t* bits, float* y, int count);
    void (*to_float16)(const float* x, uint16_t* bits, int count);
    void (*from_bfloat16)(const uint16_t* bits, float* y, int count);
    void (*to_bfloat16)(const float* x, uint16_t* bits, int count);
};

}  // namespace scanlab::test
