// One decoding step of the scan: states lie in the lanes, and the sums over them are turned into channels.
#pragma once

#include "tiles.h"

namespace scanlab::SCANLAB_ISA {

using mixer::StateUpdate;

inline constexpr int update_channels = 64;  // of a task

template <class T>
size_t update_workspace(const StateUpdate& update) {
    return 3 * whole_vectors<T>(update.state) * sizeof(T);
}

// Channels of one head as dense numbers; zeros where the tensor is not there.
template <class T>
void read_channels(T* to, const StateUpdate::PerBatch& from, int64_t batch, int64_t head, int64_t channel, int channels) {
    if (!from.data) return clear(to, whole_vectors<T>(channels));
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first = static_cast<const S*>(from.data) + batch * from.batch + head * from.head + channel * from.channel;
        read_run(to, first, from.channel, channels);
    });
}
template <class T>
void write_channels(const T* from, const StateUpdate::PerBatch& to, int64_t batch, int64_t head, int64_t channel, int channels) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        S* first = static_cast<S*>(to.data) + batch * to.batch + head * to.head + channel * to.channel;
        write_run(first, from, to.channel, channels);
    });
}
// The states of one channel: in place where they are dense numbers of T already, otherwise copied to `buffer`.
template <class T>
const T* read_states(T* buffer, const StateUpdate::PerState& from, int64_t batch, int64_t head, int64_t channel, int64_t states) {
    const T* result = buffer;
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first = static_cast<const S*>(from.data) + batch * from.batch + head * from.head + channel * from.channel;
        if constexpr (sizeof(S) == sizeof(T)) {
            if (from.state == 1 && states % lanes<T> == 0) {
                result = first;
                return;
            }
        }
        read_run(buffer, first, from.state, states);
    });
    return result;
}

// h = h exp(dt A) + dt x B in place, rounded to its own storage; returns the lanes of the unrounded <h, C>.
template <class T, class S>
SCANLAB_INLINE Vec<T> step_of(S* h, int64_t stride, const T* A, const T* B, const T* C, T dt, T x, int64_t states) {
    const T rate = dt * log2_e<T>, drive = dt * x;
    Vec<T> sum{};
    for (int64_t n = 0; n < states; n += lanes<T>) {
        const int count = int(smaller(states - n, lanes<T>));
        alignas(64) T wide[lanes<T>] = {};
        Vec<T> value;
        const bool adjacent = vectors<T, S> && stride == 1;
        if constexpr (vectors<T, S>)
            if (adjacent) value = load_some<T>(h + n, count);
        if (!adjacent) {
            read_run(wide, h + n * stride, stride, count);
            value = load<T>(wide);
        }
        value = value * exp2<T, Exp::polynomial>(load<T>(A + n) * rate) + load<T>(B + n) * drive;
        sum += value * load<T>(C + n);
        if constexpr (vectors<T, S>)
            if (adjacent) store_some<T>(h + n, value, count);
        if (!adjacent) {
            store<T>(wide, value);
            write_run(h + n * stride, wide, stride, count);
        }
    }
    return sum;
}

template <class T>
void update_states(const StateUpdate& update, int64_t begin, int64_t end, void* workspace) {
    const int64_t blocks = (update.dim + update_channels - 1) / update_channels;
    T* const B_buffer = static_cast<T*>(workspace);
    T* const C_buffer = B_buffer + whole_vectors<T>(update.state);
    T* const A_buffer = C_buffer + whole_vectors<T>(update.state);
    alignas(64) T x[update_channels], dt[update_channels], z[update_channels], D[update_channels], y[update_channels];
    for (int64_t index = begin; index < end; index++) {
        const int64_t channel = index % blocks * update_channels, head = index / blocks % update.heads;
        const int64_t batch = index / blocks / update.heads, group = head / (update.heads / update.groups);
        const int channels = int(smaller(update_channels, update.dim - channel));
        const int64_t row = update.rows ? update.rows[batch] : batch;
        if (row < 0) {
            clear(y, update_channels);
            write_channels(y, update.out, batch, head, channel, channels);
            continue;
        }
        read_channels(x, update.x, batch, head, channel, channels);
        read_channels(dt, update.dt, batch, head, channel, channels);
        read_channels(D, update.D, 0, head, channel, channels);
        read_channels(z, update.dt_bias, 0, head, channel, channels);
        for (int c = 0; c < channels; c += lanes<T>) {
            const Vec<T> step = load<T>(dt + c) + load<T>(z + c);
            store<T>(dt + c, update.softplus ? softplus<T>(step) : step);
        }
        const T* B = read_states(B_buffer, update.B, batch, group, 0, update.state);
        const T* C = read_states(C_buffer, update.C, batch, group, 0, update.state);
        with_storage(update.h.type, [&](auto storage) {
            using S = typename decltype(storage)::type;
            S* const first = static_cast<S*>(update.h.data) + row * update.h.batch + head * update.h.head;
            for (int c = 0; c < channels; c += lanes<T>) {
                Vec<T> sums[lanes<T>] = {};
                for (int i = c; i < channels && i < c + lanes<T>; i++) {
                    const T* A = read_states(A_buffer, update.A, 0, head, channel + i, update.state);
                    S* h = first + (channel + i) * update.h.channel;
                    sums[i - c] = step_of<T>(h, update.h.state, A, B, C, dt[i], x[i], update.state);
                }
                transpose<T>(sums);
                Vec<T> sum{};
                if (update.D.data) sum = load<T>(D + c) * load<T>(x + c);
                for (int i = 0; i < lanes<T>; i++) sum += sums[i];
                store<T>(y + c, sum);
            }
        });
        if (update.z.data) {
            read_channels(z, update.z, batch, head, channel, channels);
            for (int c = 0; c < channels; c += lanes<T>) {
                const Vec<T> gate = load<T>(z + c);
                store<T>(y + c, load<T>(y + c) * gate * sigmoid<T>(gate));
            }
        }
        write_channels(y, update.out, batch, head, channel, channels);
    }
}

}  // namespace scanlab::SCANLAB_ISA
