// One decoding step of the scan: the states of a channel lie in the lanes; their sums are transposed into channels.
#pragma once

#include "cpu/strided.h"
#include "state_update/native.h"

namespace scanlab::SCANLAB_ISA {

using mixer::StateUpdate;

inline constexpr int update_channels = 64;  // of a task

template <class T>
size_t update_workspace(const StateUpdate& update) {
    return 4 * whole_vectors<T>(update.state) * sizeof(T);
}

// Channels of one head as dense numbers; zeros where the tensor is not there.
template <class T>
void read_channels(T* to, const StateUpdate::PerBatch& from, int64_t batch, int64_t head, int64_t channel,
                   int channels) {
    if (!from.data) return clear(to, whole_vectors<T>(channels));
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first =
            static_cast<const S*>(from.data) + batch * from.batch + head * from.head + channel * from.channel;
        read_run(to, first, from.channel, channels);
    });
}
template <class T>
void write_channels(const T* from, const StateUpdate::PerBatch& to, int64_t batch, int64_t head, int64_t channel,
                    int channels) {
    with_storage(to.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        S* first = static_cast<S*>(to.data) + batch * to.batch + head * to.head + channel * to.channel;
        write_run(first, from, to.channel, channels);
    });
}
// The states of one channel or group as dense numbers.
template <class T>
void read_states(T* to, const StateUpdate::PerState& from, int64_t batch, int64_t head, int64_t channel,
                 int64_t states) {
    with_storage(from.type, [&](auto storage) {
        using S = typename decltype(storage)::type;
        const S* first =
            static_cast<const S*>(from.data) + batch * from.batch + head * from.head + channel * from.channel;
        read_run(to, first, from.state, states);
    });
}

// h = h exp(dt A) + dt x B of one channel, whose h is adjacent in memory and rounded to its storage; returns the
// lanes of the unrounded <h, C>. `whole` means that the states are whole vectors, `log_A` that A holds log(-A).
template <class T, class S, bool whole>
SCANLAB_INLINE Vec<T> step_of(S* h, const T* A, const T* B, const T* C, T dt, T x, int64_t states, bool log_A) {
    const T rate = dt * log2_e<T>, drive = dt * x;
    Vec<T> sum{};
    for (int64_t n = 0; n < states; n += lanes<T>) {
        const int count = whole ? lanes<T> : int(smaller(states - n, lanes<T>));
        Vec<T> own_A = load_some<T>(A + n, count);
        if (log_A) own_A = -exp2<T>(own_A * log2_e<T>);
        const Vec<T> decay = exp2<T>(own_A * rate);
        const Vec<T> value = load_some<T>(h + n, count) * decay + load<T>(B + n) * drive;
        sum += value * load<T>(C + n);
        store_some<T>(h + n, value, count);
    }
    return sum;
}

template <class T>
void update_states(const StateUpdate& update, int64_t begin, int64_t end, void* workspace) {
    const int64_t blocks = (update.dim + update_channels - 1) / update_channels;
    const int64_t states = update.state, padded = whole_vectors<T>(states);
    T* const B = static_cast<T*>(workspace);
    T* const C = B + padded;
    T* const A_buffer = C + padded;
    T* const h_buffer = A_buffer + padded;
    const bool whole = states == padded;
    const bool dense_A = update.A.state == 1 && update.A.type == type_of<T>;
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
        read_states(B, update.B, batch, group, 0, states);
        read_states(C, update.C, batch, group, 0, states);
        const T* const A = static_cast<const T*>(update.A.data) + head * update.A.head;
        with_storage(update.h.type, [&](auto storage) {
            using S = typename decltype(storage)::type;
            S* const h = static_cast<S*>(update.h.data) + row * update.h.batch + head * update.h.head;
            for (int c = 0; c < channels; c += lanes<T>) {
                const int count = int(smaller(lanes<T>, channels - c));
                Vec<T> terms[lanes<T>] = {};
                for (int i = 0; i < count; i++) {
                    const int64_t k = channel + c + i;
                    S* const own = h + k * update.h.channel;
                    if constexpr (vectors<T, S>) {
                        if (whole && dense_A && update.h.state == 1) {
                            terms[i] = step_of<T, S, true>(own, A + k * update.A.channel, B, C, dt[c + i], x[c + i],
                                                           states, update.log_A);
                            continue;
                        }
                    }
                    read_states(A_buffer, update.A, 0, head, k, states);
                    read_run(h_buffer, own, update.h.state, states);
                    terms[i] =
                        step_of<T, T, false>(h_buffer, A_buffer, B, C, dt[c + i], x[c + i], states, update.log_A);
                    write_run(own, h_buffer, update.h.state, states);
                }
                Vec<T> sum = sums<T, lanes<T>>(terms);
                if (update.D.data) sum += load<T>(D + c) * load<T>(x + c);
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
