// What a scan and its gradients must be, in double.
#pragma once

#include "scan_case.h"

namespace scanlab::test {

// Numbers by their place, in double.
struct Array {
    std::vector<int64_t> shape;
    std::vector<Complex> values;
    explicit Array(std::vector<int64_t> shape) : shape(std::move(shape)) {
        int64_t count = 1;
        for (int64_t size : this->shape) count *= size;
        values.assign(count, 0);
    }
    template <class... Index>
    Complex& operator()(Index... index) {
        int64_t at = 0;
        size_t axis = 0;
        for (int64_t i : {int64_t(index)...}) at = at * shape[axis++] + i;
        return values[at];
    }
};

struct DirectionTruth {
    Array last, u, delta, z, A, B, C, D, delta_bias, initial;
};
struct Truth {
    Array out;
    std::vector<DirectionTruth> direction;
};

// The definition of the scan, step by step, and its gradients by the chain rule from the last step to the first.
Truth plain_loop(const Case& drawn);

}  // namespace scanlab::test
