// The product of rows with a packed weight in bfloat16 on AMX, whose registers are tiles of 16 rows of 64 bytes.
//
// The instruction reads a panel of the packed weight as it lies, two elements of the depth beside each other for each
// feature: 16 such pairs by 16 features make one tile.
#pragma once

#include "cpu/strided.h"
#include "linear/native.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::PackedLinear;

inline constexpr int tile_depth = 32, tile_features = 16, max_tile_rows = 16;

// Completes earlier writes: the compiler does not know that instructions on tiles read memory.
SCANLAB_INLINE void finish_writes() { asm volatile("" : : : "memory"); }

// The shapes of the tile registers, in force until the end of the scope: 0 to 2 hold sums (rows, features), 3 holds x
// (rows, depth), 4 holds weights (depth, features), and 5 and 6 hold x and weights of what is left of the depth.
class Tiles {
public:
    Tiles(int rows, int depth_left) {
        const int pairs = (depth_left + 1) / 2;
        for (int sum = 0; sum < 3; sum++) shape(sum, rows, 64);
        shape(3, rows, 64), shape(4, 16, 64);
        if (pairs) shape(5, rows, 4 * pairs), shape(6, pairs, 64);
        finish_writes();
        _tile_loadconfig(&configuration);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

private:
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } configuration;

    void shape(int tile, int rows, int row_bytes) {
        configuration.rows[tile] = uint8_t(rows), configuration.row_bytes[tile] = uint16_t(row_bytes);
    }
};

// Adds the products of the tile of x with the tiles of weights of each 16 features, which pass through one register. A
// macro, because the instructions take the numbers of registers as literals.
#define SCANLAB_ADD_PRODUCTS(x_tile, weight_tile)                            \
    _tile_loadd(weight_tile, weights, weight_bytes);                         \
    _tile_dpbf16ps(0, x_tile, weight_tile);                                  \
    if constexpr (columns > 1) {                                             \
        _tile_loadd(weight_tile, weights + 2 * tile_features, weight_bytes); \
        _tile_dpbf16ps(1, x_tile, weight_tile);                              \
    }                                                                        \
    if constexpr (columns > 2) {                                             \
        _tile_loadd(weight_tile, weights + 4 * tile_features, weight_bytes); \
        _tile_dpbf16ps(2, x_tile, weight_tile);                              \
    }

// The product of `rows` rows of x with a panel of 16 * `columns` features, of which the first `features` are stored.
template <int columns, class Out>
SCANLAB_INLINE void multiply_tiles(const PackedLinear& linear, const bfloat16* x, int rows, const bfloat16* weights,
                                   const Vec<float>* bias, int features, Out* out) {
    constexpr int64_t pitch = columns * tile_features;
    _tile_zero(0);
    if constexpr (columns > 1) _tile_zero(1);
    if constexpr (columns > 2) _tile_zero(2);
    const int64_t x_bytes = linear.x_row * sizeof(*x), weight_bytes = 2 * pitch * sizeof(*weights);
    int64_t k = 0;
    for (; k + tile_depth <= linear.depth; k += tile_depth, weights += tile_depth * pitch) {
        _tile_loadd(3, x + k, x_bytes);
        SCANLAB_ADD_PRODUCTS(3, 4);
    }
    if (const int64_t left = linear.depth - k; left > 0) {
        bfloat16 padded[max_tile_rows * tile_depth];
        if (left % 2 == 0) {
            _tile_loadd(5, x + k, x_bytes);
        } else {  // the element after the last one belongs to another row or tensor: zero instead
            for (int row = 0; row < rows; row++) {
                memcpy(padded + row * tile_depth, x + row * linear.x_row + k, left * sizeof(*x));
                padded[row * tile_depth + left] = {};
            }
            finish_writes();
            _tile_loadd(5, padded, tile_depth * sizeof(*x));
        }
        SCANLAB_ADD_PRODUCTS(5, 6);
    }
    alignas(64) float sums[max_tile_rows * pitch];
    constexpr int64_t sum_bytes = pitch * sizeof(*sums);
    _tile_stored(0, sums, sum_bytes);
    if constexpr (columns > 1) _tile_stored(1, sums + tile_features, sum_bytes);
    if constexpr (columns > 2) _tile_stored(2, sums + 2 * tile_features, sum_bytes);
    constexpr int last = (columns - 1) * tile_features;
    const int left = features - last;
    for (int row = 0; row < rows; row++, out += linear.out_row) {
        const auto sum = [&](int v) SCANLAB_ALWAYS_INLINE {
            return load<float>(sums + row * pitch + v * tile_features) + bias[v];
        };
#pragma GCC unroll 2
        for (int v = 0; v < columns - 1; v++) store<float>(out + v * tile_features, sum(v));
        store_some<float>(out + last, sum(columns - 1), left);
    }
}

#undef SCANLAB_ADD_PRODUCTS

// Rows [row, rows) of panels [first, last), stored as Out. All tiles have as many rows: the last one begins early
// enough to be full, and computes some rows again.
template <class Out>
void multiply_packed_in_tiles(const PackedLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
    if (row >= rows || first >= last) return;
    const int tile_rows = int(smaller(max_tile_rows, rows - row));
    const Tiles tiles(tile_rows, int(linear.depth % tile_depth));
    for (int64_t panel = first; panel < last; panel++) {
        const int64_t begin = panel * mixer::panel_features;
        const int features = int(smaller(mixer::panel_features, linear.features - begin));
        const int columns = (features + tile_features - 1) / tile_features, pitch = columns * tile_features;
        const bfloat16* const weights =
            static_cast<const bfloat16*>(linear.packed) + begin * linear.packed_depth + linear.from * pitch;
        Vec<float> bias[3];
        for (int v = 0; v < columns; v++) {
            const int feature = v * tile_features;
            bias[v] = linear.bias ? load_some<float>(linear.bias + begin + feature, features - feature) : Vec<float>{};
        }
        for (int64_t next = row; next < rows; next += tile_rows) {
            const int64_t at = smaller(next, rows - tile_rows);
            const bfloat16* const x = static_cast<const bfloat16*>(linear.x) + at * linear.x_row;
            Out* const out = static_cast<Out*>(linear.out) + at * linear.out_row + begin;
            if (columns == 3) multiply_tiles<3>(linear, x, tile_rows, weights, bias, features, out);
            else if (columns == 2) multiply_tiles<2>(linear, x, tile_rows, weights, bias, features, out);
            else multiply_tiles<1>(linear, x, tile_rows, weights, bias, features, out);
        }
    }
}

}  // namespace scanlab::SCANLAB_TARGET
