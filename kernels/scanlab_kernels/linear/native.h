// Linear layers, as the kernels see them.
#pragma once

#include "cpu/types.h"

namespace scanlab::mixer {

// out = x weight^T + bias for few rows of float32, bfloat16 or float16, summed in float32.
struct Gemv {
    Type type = Type::float32;  // of weight and out
    int64_t rows = 0, features = 0, depth = 0;
    const float* x = nullptr;      // (rows, depth), dense
    const void* weight = nullptr;  // (features, depth), the depth dense
    int64_t weight_row = 0;
    const float* bias = nullptr;  // (features,), dense
    void* out = nullptr;          // (rows, features), dense
};

// The same for many rows of float32 or bfloat16. A panel of the packed weight holds panel_features features, the last
// one what is left and zeros up to a multiple of 16: packed[panel][k][feature]; in bfloat16, whose elements are
// multiplied two at a time, packed[panel][k / 2][feature][k % 2], and zeros up to an even depth.
struct PackedLinear {
    int64_t depth = 0, features = 0;
    const void* x = nullptr;  // (rows, depth), the depth dense
    int64_t x_row = 0;
    const void* packed = nullptr;
    int64_t packed_depth = 0, from = 0;  // the depth of the packed weight, and where in it that of x begins; both even
    const float* bias = nullptr;         // (features,), dense
    void* out = nullptr;                 // (rows, features), the features dense
    int64_t out_row = 0;
};
inline constexpr int64_t panel_features = 48;
inline constexpr int64_t row_step = 8;  // rows that are multiplied together, or a multiple of that

}  // namespace scanlab::mixer
