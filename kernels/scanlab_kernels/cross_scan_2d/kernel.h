// The scan of a feature map along its rows and columns, forward and in reverse.
//
// Each task takes one vector of channels through all four directions and sums their outputs in its own memory, in the
// order of positions; the sum is written to the output at the end.
#pragma once

#include "cross_scan_2d/native.h"
#include "selective_scan/native/tile.h"

namespace scanlab::SCANLAB_TARGET {

template <class T>
struct CrossTask {
    static constexpr int width = lanes<T>;
    const CrossScan& scan;
    const int64_t projections = (scan.state + width - 1) / width * width,
                  ranks = (scan.rank + width - 1) / width * width;
    T *u_rows, *delta_rows, *step_size, *y, *B_rows, *C_rows, *low_rows, *A, *h, *dt_weight, *sum;
    int64_t batch = 0, channel = 0;
    int channels = 0;

    CrossTask(const CrossScan& scan, Arena<T>& arena) : scan(scan) {
        for (T** piece : {&u_rows, &delta_rows, &step_size, &y}) *piece = arena.take(scan.time_block * width);
        for (T** piece : {&B_rows, &C_rows}) *piece = arena.take(scan.time_block * projections);
        low_rows = arena.take(scan.time_block * ranks);
        for (T** piece : {&A, &h}) *piece = arena.take(scan.state * width);
        dt_weight = arena.take(scan.rank * width);
        sum = arena.take(scan.height * scan.width * width);
    }

    // Some steps of a line of the map, in the order of a direction, from a position on.
    struct Piece {
        int direction, steps;
        int64_t row, column;
        bool by_column() const { return direction % 2; }
        int sign() const { return direction >= 2 ? -1 : 1; }
    };

    Strided block_of(const FeatureMap& map, const Piece& piece, int64_t first) const {
        const int64_t at = batch * map.batch + piece.direction * map.direction + first * map.channel +
                           piece.row * map.row + piece.column * map.column;
        const int64_t step = piece.by_column() ? map.row : map.column;
        return {scan.type, static_cast<char*>(map.data) + at * size_of(scan.type), piece.sign() * step, map.channel};
    }

    Vec<T> weights(const void* data, int direction) const {
        return vector_of<T>({data ? static_cast<const T*>(data) + direction * scan.dim : nullptr, 1, 0}, channel,
                            channels);
    }

    // The delta of `count` steps from `first` on, as products of its low rank; the sums stay in registers.
    template <int count>
    void project_steps(const Rows<T>& low, int first) const {
        Vec<T> sums[count] = {};
        for (int r = 0; r < scan.rank; r++) {
            const Vec<T> weight = load(dt_weight + r * width);
#pragma GCC unroll 8
            for (int i = 0; i < count; i++) sums[i] += weight * broadcast(low[first + i][r]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) store<T>(delta_rows + (first + i) * width, sums[i]);
    }

    // The same for all steps, `count` at a time; the last products may repeat some of those before.
    template <int count>
    void project(const Rows<T>& low, int steps) const {
        for (int first = 0; first < steps; first += count)
            project_steps<count>(low, first + count < steps ? first : steps - count);
    }

    Rows<T> delta_of(const Piece& piece) const {
        if (!scan.rank)
            return rows<T>(block_of(scan.delta, piece, channel), piece.steps, channels, true, delta_rows, width);
        const Rows<T> low =
            rows<T>(block_of(scan.delta, piece, 0), piece.steps, int(scan.rank), false, low_rows, ranks);
        if (piece.steps >= 8) project<8>(low, piece.steps);
        else if (piece.steps >= 4) project<4>(low, piece.steps);
        else project<1>(low, piece.steps);
        return {delta_rows, width};
    }

    // The states of a piece, and its outputs added to the sum.
    void run_piece(const Piece& piece, const Piece* next, Vec<T> bias, Vec<T> D) const {
        Rows<T> u = rows<T>(block_of(scan.u, piece, channel), piece.steps, channels, true, u_rows, width);
        const Rows<T> delta = delta_of(piece);
        const auto projection = [&](const FeatureMap& map, T* buffer) {
            return rows<T>(block_of(map, piece, 0), piece.steps, int(scan.state), false, buffer, projections);
        };
        const Rows<T> B = projection(scan.B, B_rows), C = projection(scan.C, C_rows);
        (scan.softplus ? discretize_delta<T, true, DeltaOutputs::value, T>
                       : discretize_delta<T, false, DeltaOutputs::value, T>)(piece.steps, delta, bias, step_size,
                                                                             nullptr, u, nullptr);
        Block<T> block{piece.steps, int(scan.state), false,  false, step_size, u, y, A, h, B, C, {},
                       0,           nullptr,         nullptr};
        if (next) block.prefetches[block.num_prefetches++] = prefetch_of(block_of(scan.u, *next, channel));
        if (next && !scan.rank)
            block.prefetches[block.num_prefetches++] = prefetch_of(block_of(scan.delta, *next, channel));
        run_recurrence<T, 1, false>(block, scan.exp);
        T* to = sum + (piece.row * scan.width + piece.column) * width;
        const int64_t step = piece.sign() * (piece.by_column() ? scan.width : 1) * width;
        const bool add = piece.direction > 0;
        for (int t = 0; t < piece.steps; t++, to += step) {
            Vec<T> value = load(y + t * width);
            if (scan.D) value += D * load(u[t]);  // without D, 0 times an infinite u would be no 0
            if (add) value += load(to);
            store<T>(to, value);
        }
    }

    void run_direction(int direction) const {
        Piece piece{direction, 0, 0, 0};
        pack<T>({static_cast<const T*>(scan.A) + direction * scan.dim * scan.state, scan.state, 1}, channel, channels,
                int(scan.state), 1, A);
        for (int n = 0; n < scan.state; n++) store<T>(A + n * width, load(A + n * width) * log2_e<T>);
        if (scan.rank)
            pack<T>({static_cast<const T*>(scan.dt_weight) + direction * scan.dim * scan.rank, scan.rank, 1}, channel,
                    channels, int(scan.rank), 1, dt_weight);
        memset(h, 0, scan.state * width * sizeof(T));
        const Vec<T> bias = weights(scan.delta_bias, direction), D = weights(scan.D, direction);
        const int64_t lines = piece.by_column() ? scan.width : scan.height;
        const int64_t length = piece.by_column() ? scan.height : scan.width;
        const int64_t pieces = (length + scan.time_block - 1) / scan.time_block;
        const auto at = [&](int64_t index) {
            const int64_t line = index / pieces, begin = index % pieces * scan.time_block;
            Piece found = piece;
            found.steps = int(length - begin < scan.time_block ? length - begin : scan.time_block);
            const int64_t across = direction >= 2 ? lines - 1 - line : line;
            const int64_t along = direction >= 2 ? length - 1 - begin : begin;
            found.row = piece.by_column() ? along : across, found.column = piece.by_column() ? across : along;
            return found;
        };
        Piece now = at(0);
        for (int64_t index = 1; index < lines * pieces; index++) {
            const Piece next = at(index);
            run_piece(now, &next, bias, D);
            now = next;
        }
        run_piece(now, nullptr, bias, D);
    }

    void run(int64_t task) {
        const int64_t vectors = (scan.dim + width - 1) / width;
        batch = task / vectors, channel = task % vectors * width;
        channels = int(scan.dim - channel < width ? scan.dim - channel : width);
        for (int direction = 0; direction < cross_directions; direction++) run_direction(direction);
        for (int64_t row = 0; row < scan.height; row++)
            for (int64_t column = 0; column < scan.width; column += scan.time_block) {
                const int64_t left = scan.width - column;
                const Piece piece{0, int(left < scan.time_block ? left : scan.time_block), row, column};
                write_block(block_of(scan.out, piece, channel), piece.steps, channels,
                            sum + (row * scan.width + column) * width, false);
            }
    }
};

template <class T>
size_t cross_scan_workspace(const CrossScan& scan) {
    Arena<T> arena{nullptr};
    const CrossTask<T> task(scan, arena);
    return arena.taken * sizeof(T);
}

template <class T>
void cross_scan(const CrossScan& scan, int64_t first_task, int64_t last_task, void* workspace) {
    Arena<T> arena{static_cast<T*>(workspace)};
    CrossTask<T> task(scan, arena);
    for (int64_t index = first_task; index < last_task; index++) task.run(index);
}

}  // namespace scanlab::SCANLAB_TARGET
