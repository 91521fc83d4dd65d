// The fused front of a Mamba block: the gate, u, and what is selected from u; the step sizes come after it.
#pragma once

#include "causal_conv1d/kernel.h"
#include "linear/packed_linear.h"
#include "mamba_front/native.h"

namespace scanlab::SCANLAB_TARGET {

using mixer::MambaFront;
using mixer::max_steps;
using mixer::Piece;

// Rows from `row` on of one panel of features.
template <class S>
SCANLAB_INLINE PackedLinear panel_of(const PackedLinear& linear, int64_t panel, int64_t row) {
    const int64_t begin = panel * panel_features;
    PackedLinear part = linear;
    part.features = smaller(panel_features, linear.features - begin);
    part.x = static_cast<const S*>(linear.x) + row * linear.x_row;
    part.packed = static_cast<const S*>(linear.packed) + begin * linear.packed_depth;
    if (linear.bias) part.bias = linear.bias + begin;
    if (linear.out) part.out = static_cast<S*>(linear.out) + row * linear.out_row + begin;
    return part;
}

// The gate and u of a group of channels in a piece of time, and the group's share of what is selected.
template <class S>
void convolve_group(const MambaFront& front, const Piece& piece, int64_t group) {
    const Conv& conv = front.conv;
    const int64_t halo = conv.width - 1, row = piece.batch * conv.length;
    const int64_t begin = larger(0, piece.first - halo), end = smaller(conv.length, piece.stop + halo);
    const int64_t first = group * front.panels_each, last = smaller(panels_of(front.into), first + front.panels_each);
    alignas(64) S x[(max_steps + 2 * mixer::max_width) * panel_features];
    for (int64_t panel = first; panel < last; panel++) {
        PackedLinear into = panel_of<S>(front.into, panel, row + begin);
        into.out = x, into.out_row = panel_features;
        multiply_packed<S>(into, 0, end - begin, 0, 1);
        multiply_packed<S>(panel_of<S>(front.gate, panel, row + piece.first), 0, piece.stop - piece.first, 0, 1);
        Conv part = conv;
        part.batch = 1, part.dim = into.features, part.length = end - begin;
        part.x = {x, conv.direction[0].out.type, 0, 1, panel_features};
        for (int d = 0; d < conv.directions; d++) {
            ConvDirection& direction = part.direction[d];
            const int64_t channel = panel * panel_features;
            direction.weight = static_cast<const float*>(direction.weight) + channel * conv.width;
            if (direction.bias) direction.bias = static_cast<const float*>(direction.bias) + channel;
            direction.out.data = static_cast<S*>(direction.out.data) + (row + begin) * direction.out.column + channel;
        }
        const Tiling<float> cut(part);
        for (int64_t block = 0; block < cut.blocks; block++)
            convolve_steps(part, cut, Task(part, cut, 0, 0, block), piece.first - begin, piece.stop - begin);
    }
    for (int d = 0; d < conv.directions; d++) {
        PackedLinear select = front.select[d];
        select.from = first * panel_features;
        select.depth = smaller(last * panel_features, conv.dim) - select.from;
        select.x = static_cast<const S*>(select.x) + (row + piece.first) * select.x_row + select.from;
        const int64_t share = (d * front.groups + group) * front.share_rows + row + piece.first - front.first_row;
        select.out = front.shares + share * front.share_row, select.out_row = front.share_row;
        multiply_packed<S, float>(select, 0, piece.stop - piece.first, 0, panels_of(select));
    }
}

// Rows [row, rows) of what is selected: the sum of the groups' shares, in their order.
template <class S>
void add_shares(const MambaFront& front, int64_t row, int64_t rows) {
    constexpr int width = lanes<float>;
    const int64_t group = front.share_rows * front.share_row;
    for (int d = 0; d < front.conv.directions; d++) {
        const PackedLinear& select = front.select[d];
        for (int64_t at = row; at < rows; at++) {
            const float* shares = front.shares + d * front.groups * group + (at - front.first_row) * front.share_row;
            S* const out = static_cast<S*>(select.out) + at * select.out_row;
            for (int64_t i = 0; i < select.features; i += width) {
                const int left = int(smaller(width, select.features - i));
                Vec<float> sum = load_some<float>(shares + i, left);
                for (int64_t g = 1; g < front.groups; g++) sum += load_some<float>(shares + g * group + i, left);
                store_some<float>(out + i, sum, left);
            }
        }
    }
}

}  // namespace scanlab::SCANLAB_TARGET
