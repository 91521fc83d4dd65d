// Types that the C++ kernels share: how numbers are stored, which exponential a scan takes, where a matrix lies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace scanlab {

enum class Type { float32, float64, bfloat16, float16 };
enum class Exp { fast, exact };

namespace mixer {

// A tensor of rows and columns, and any leading axis. Strides count elements; a tensor that is not there has no data.
struct Matrix {
    void* data = nullptr;
    Type type = Type::float32;
    int64_t lead = 0, row = 0, column = 0;
};

}  // namespace mixer

}  // namespace scanlab
