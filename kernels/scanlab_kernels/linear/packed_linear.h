// A linear layer on many rows, with its weight packed in the order in which it is read.
//
// A panel holds the weights of 48 features, or of what is left rounded up to 16, feature beside feature for each
// element of the depth. Those are whole vectors on every instruction set (16 floats are one vector of AVX-512, two of
// AVX2, four of 128 bits), so that all share one packed form. In bfloat16 two elements of the depth lie beside each
// other for each feature, as the instructions for it read them.
#pragma once

#include "cpu/strided.h"
#include "linear/native.h"
#if defined(__AMX_BF16__)
#include "linear/tiles.h"
#endif

namespace scanlab::SCANLAB_TARGET {

using mixer::PackedLinear;
using mixer::panel_features;

// A tile of tile_rows x tile_vectors sums stays in registers, beside one row of weights and one element of x.
inline constexpr int tile_rows = SCANLAB_REGISTERS == 32 ? 8 : 4, tile_vectors = 3, block_rows = 64;
static_assert(tile_rows <= mixer::row_step && mixer::row_step % tile_rows == 0);

// How S is multiplied: `depth` elements of the depth at once, which fill a lane of 32 bits. `spread` broadcasts those
// of x, of which `left` are there; `weights` loads those of a vector of features.
template <class S>
struct Multiplying;
template <>
struct Multiplying<float> {
    static constexpr int depth = 1;
    static SCANLAB_INLINE Vec<float> spread(const float* x, int) { return broadcast(*x); }
    static SCANLAB_INLINE Vec<float> weights(const float* from) { return load<float>(from); }
    static SCANLAB_INLINE Vec<float> add(Vec<float> x, Vec<float> weight, Vec<float> sum) {
        return multiply_add(x, weight, sum);
    }
};
#if defined(__AVX512BF16__)
template <>
struct Multiplying<bfloat16> {
    static constexpr int depth = 2;
    static SCANLAB_INLINE __m512bh spread(const bfloat16* x, int left) {
        uint32_t pair = x[0].bits;
        if (left > 1) memcpy(&pair, x, sizeof(pair));
        return bits_as<__m512bh>(_mm512_set1_epi32(int(pair)));
    }
    static SCANLAB_INLINE __m512bh weights(const bfloat16* from) { return bits_as<__m512bh>(_mm512_loadu_si512(from)); }
    static SCANLAB_INLINE Vec<float> add(__m512bh x, __m512bh weight, Vec<float> sum) {
        return _mm512_dpbf16_ps(sum, x, weight);
    }
};
#endif

// Rows [row, row + tile_rows) and `vectors` vectors of features. In place of rows past the last one, that one is
// multiplied again and not stored.
template <class S, class Out, int vectors>
SCANLAB_INLINE void multiply_tile(const PackedLinear& linear, int64_t row, int64_t rows, int64_t feature,
                                  const S* weights, int64_t pitch) {
    using As = Multiplying<S>;
    constexpr int width = lanes<float>;
    const auto left = [&](int v) { return int(smaller(width, larger(0, linear.features - feature - v * width))); };
    Vec<float> sum[tile_rows][vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const Vec<float> bias =
            linear.bias ? load_some<float>(linear.bias + feature + v * width, left(v)) : Vec<float>{};
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; r++) sum[r][v] = bias;
    }
    const S* x[tile_rows];
    for (int r = 0; r < tile_rows; r++)
        x[r] = static_cast<const S*>(linear.x) + smaller(row + r, rows - 1) * linear.x_row;
    const auto add = [&](int64_t k, int some) SCANLAB_ALWAYS_INLINE {
        decltype(As::weights(weights)) weight[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) weight[v] = As::weights(weights + v * width * As::depth);
#pragma GCC unroll 8
        for (int r = 0; r < tile_rows; r++) {
            const auto one = As::spread(x[r] + k, some);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] = As::add(one, weight[v], sum[r][v]);
        }
        weights += pitch * As::depth;
    };
    int64_t k = 0;
    for (; k + As::depth <= linear.depth; k += As::depth) add(k, As::depth);
    if (k < linear.depth) add(k, int(linear.depth - k));
    Out* const out = static_cast<Out*>(linear.out) + row * linear.out_row + feature;
    for (int r = 0; r < tile_rows && row + r < rows; r++)
        for (int v = 0; v < vectors; v++) store_some<float>(out + r * linear.out_row + v * width, sum[r][v], left(v));
}

SCANLAB_INLINE int64_t panels_of(const PackedLinear& linear) {
    return (linear.features + panel_features - 1) / panel_features;
}

// Rows [row, rows) of panels [first, last), stored as Out. One block of rows at a time goes through all panels, which
// come out of the caches; what a block writes lies on few pages.
template <class S, class Out = S>
void multiply_packed(const PackedLinear& linear, int64_t row, int64_t rows, int64_t first, int64_t last) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(S) == 2) return multiply_packed_in_tiles<Out>(linear, row, rows, first, last);
#endif
    constexpr int width = lanes<float>;
    for (int64_t block = row; block < rows; block += block_rows) {
        const int64_t end = smaller(block + block_rows, rows);
        for (int64_t panel = first; panel < last; panel++) {
            const int64_t begin = panel * panel_features;
            const int64_t pitch = smaller(panel_features, (linear.features - begin + 15) / 16 * 16);
            for (int64_t column = 0; column < pitch; column += tile_vectors * width) {
                const S* packed =
                    static_cast<const S*>(linear.packed) + begin * linear.packed_depth + linear.from * pitch;
                const S* weights = packed + column * Multiplying<S>::depth;
                const int64_t vectors = smaller(tile_vectors, (pitch - column) / width);
                for (int64_t at = block; at < end; at += tile_rows) {
                    if (vectors == 3) multiply_tile<S, Out, 3>(linear, at, end, begin + column, weights, pitch);
                    else if (vectors == 2) multiply_tile<S, Out, 2>(linear, at, end, begin + column, weights, pitch);
                    else multiply_tile<S, Out, 1>(linear, at, end, begin + column, weights, pitch);
                }
            }
        }
    }
}

}  // namespace scanlab::SCANLAB_TARGET
