// The neighbours of the scan in a Mamba mixer, without torch: what each op is made of.
//
// Every op works on small dense tiles of its arithmetic type: tensors of any storage type and any strides are
// converted at the edge of a tile, so the arithmetic is compiled for float and for double only. Strides count
// elements. A tensor that is not there has no data. Work is cut into tasks whose bounds do not depend on the
// number of threads, so neither do the bits of a result.
#pragma once

#include "selective_scan/native/scan.h"

namespace scanlab::mixer {

struct Matrix {  // (rows, columns), and any leading axis
    void* data = nullptr;
    Type type = Type::float32;
    int64_t lead = 0, row = 0, column = 0;
};

inline constexpr int max_width = 16;

// out[t] = activation(bias + sum over k of weight[k] x[t - (width - 1) + k]), or in reverse x[t + (width - 1) - k].
struct ConvDirection {
    bool reverse = false;
    const void* weight = nullptr;  // (dim, width), dense, of the arithmetic type
    const void* bias = nullptr;    // (dim,), likewise
    Matrix out;                    // (batch, dim, length); in a backward pass its gradient
    void* partials = nullptr;      // backward: (batch, chunks, dim, width + 1) shares of the weight's and bias's gradient
};
struct Conv {
    int64_t batch = 0, dim = 0, length = 0;
    int width = 0;
    bool wide = false, silu = false;  // wide: float64 arithmetic
    Matrix x, initial;                // (batch, dim, length), and (batch, dim, width - 1) of the input before x
    const int32_t* ids = nullptr;     // (batch, length): the sequence each step belongs to; negative is padding
    int directions = 1;
    ConvDirection direction[2];
    Matrix grad_x, grad_initial;
};

struct ConvUpdate {
    int64_t batch = 0, dim = 0, length = 0, slots = 0;
    int width = 0;
    bool wide = false, silu = false;
    Matrix x, state, out;  // (batch, dim, length), (rows, dim, slots), (batch, dim, length)
    const void* weight = nullptr;
    const void* bias = nullptr;
    const int32_t* positions = nullptr;  // (batch,): where in its circular buffer x begins; none: the state shifts
    const int32_t* rows = nullptr;       // (batch,): the row of the state; negative skips
};

// The row of each of total = hidden + residual, and its normalised image.
struct Norm {
    int64_t rows = 0, dim = 0;
    bool wide = false, centred = false;  // centred: LayerNorm
    double eps = 0;
    Matrix hidden, residual, total, out;
    const void* weight = nullptr;  // (dim,), dense, of the arithmetic type
    const void* bias = nullptr;
    Matrix grad_out, grad_total, grad;
    void* partials = nullptr;  // backward: (chunks of norm_rows rows, 2, dim)
};
inline constexpr int64_t norm_rows = 64;

struct StateUpdate {
    int64_t batch = 0, heads = 1, dim = 0, state = 0, groups = 1;
    bool wide = false, softplus = false, log_A = false;  // log_A: A holds log(-A)
    struct PerBatch {  // (batch, heads, dim)
        void* data = nullptr;
        Type type = Type::float32;
        int64_t batch = 0, head = 0, channel = 0;
    } x, dt, z, out, D, dt_bias;  // D and dt_bias have no batch stride
    struct PerState {             // (batch, heads or groups, dim, state)
        void* data = nullptr;
        Type type = Type::float32;
        int64_t batch = 0, head = 0, channel = 0, state = 0;
    } h, A, B, C;  // A has no batch stride, B and C no channel stride
    const int32_t* rows = nullptr;
};

// out = x weight^T + bias for few rows of float32.
struct Gemv {
    int64_t rows = 0, features = 0, depth = 0;
    const float* x = nullptr;       // (rows, depth), dense
    const float* weight = nullptr;  // (features, depth), the depth dense
    int64_t weight_row = 0;
    const float* bias = nullptr;    // (features,), dense
    float* out = nullptr;           // (rows, features), dense
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

// Of hidden, (batch, length, model), the gate, (batch, length, dim), and the convolution of another product, which
// stays with the thread that makes it; of u, which that gives in each direction, what is selected, (batch, length,
// selected).
//
// A thread works on a group of channels in a piece of time, and the scan after it on channels. What is selected sums
// over all of them: each group gives its share, in shares[direction][group][row from first_row on][selected].
struct BeforeScan {
    Conv conv;                            // x has no data
    PackedLinear into, gate, select[2];   // into has no out
    int64_t groups = 0, panels_each = 0;  // a group is panels_each panels of channels
    float* shares = nullptr;
    int64_t first_row = 0, share_rows = 0, share_row = 0;
};
struct Piece {
    int64_t batch, first, stop;  // steps [first, stop), most_steps at most
};
inline constexpr int64_t max_steps = 256;

// The products of one storage type.
struct Products {
    bool (*is_supported)();
    void (*packed_linear)(const PackedLinear&, int64_t row, int64_t rows, int64_t first_panel, int64_t last_panel);
    void (*convolve_group)(const BeforeScan&, const Piece&, int64_t group);
    void (*add_shares)(const BeforeScan&, int64_t row, int64_t rows);
};

// What one instruction set offers. A task is one piece of work that a thread does alone.
struct Kernels {
    const char* name;
    bool (*is_supported)();
    int64_t (*conv_chunks)(const Conv&);  // pieces along time
    int64_t (*conv_tasks)(const Conv&);
    void (*conv)(const Conv&, int64_t begin, int64_t end);
    void (*conv_backward)(const Conv&, int64_t begin, int64_t end);
    int64_t (*conv_update_tasks)(const ConvUpdate&);
    size_t (*conv_update_workspace_bytes)(const ConvUpdate&);
    void (*conv_update)(const ConvUpdate&, int64_t begin, int64_t end, void* workspace);
    size_t (*norm_workspace_bytes)(const Norm&);
    void (*norm)(const Norm&, int64_t begin, int64_t end, void* workspace);  // a task is norm_rows rows
    void (*norm_backward)(const Norm&, int64_t begin, int64_t end, void* workspace);
    int64_t (*state_update_tasks)(const StateUpdate&);
    size_t (*state_update_workspace_bytes)(const StateUpdate&);
    void (*state_update)(const StateUpdate&, int64_t begin, int64_t end, void* workspace);
    int64_t (*thin_linear_tasks)(const Gemv&);
    void (*thin_linear)(const Gemv&, int64_t begin, int64_t end);
    Products float32;
    const Products* bfloat16;  // none where the set has no such products; on some machines that have the set, too
};

}  // namespace scanlab::mixer
