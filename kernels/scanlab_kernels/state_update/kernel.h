// One decoding step of the scan: the states of a channel lie in the lanes; their sums are transposed into channels.
#pragma once

#include "cpu/strided.h"
#include "state_update/native.h"

namespace scanlab::SCANLAB_TARGET {

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

// h = decay h + drive B of one channel, whose h is adjacent in memory and rounded to its storage; returns the lanes of
// the unrounded <h, C>. `decay_of` gives the decays of the states from n on; `whole` means that the states are whole
// vectors.
template <class T, class S, bool whole, class Decay>
SCANLAB_INLINE Vec<T> step_of(S* h, const T* B, const T* C, T drive, int64_t states, const Decay& decay_of) {
    Vec<T> sum{};
    for (int64_t n = 0; n < states; n += lanes<T>) {
        const int count = whole ? lanes<T> : int(smaller(states - n, lanes<T>));
        const Vec<T> value = load_some<T>(h + n, count) * decay_of(n, count) + load<T>(B + n) * drive;
        const Vec<T> term = value * load<T>(C + n);
        // Behind the states a decay or a drive that overflowed has met a zero.
        sum += count < lanes<T> ? masked<T>(term, first_lanes<T>(count)) : term;
        store_some<T>(h + n, value, count);
    }
    return sum;
}

// exp(dt A), where A may hold log(-A).
template <class T>
SCANLAB_INLINE Vec<T> decays(Vec<T> A, Vec<T> dt, bool log_A) {
    if (log_A) A = -exp2<T>(A * log2_e<T>);
    return exp2<T>(A * (dt * log2_e<T>));
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
    const bool one_rate = update.A.state == 0 || states == 1;  // for all states of a channel, as in Mamba-2
    alignas(64) T x[update_channels], dt[update_channels], z[update_channels], D[update_channels], y[update_channels],
        decay[update_channels];
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
        if (one_rate) {
            read_channels(decay, {update.A.data, update.A.type, 0, update.A.head, update.A.channel}, 0, head, channel,
                          channels);
            for (int c = 0; c < channels; c += lanes<T>)
                store<T>(decay + c, decays<T>(load<T>(decay + c), load<T>(dt + c), update.log_A));
        }
        with_storage(update.h.type, [&](auto storage) {
            using S = typename decltype(storage)::type;
            S* const h = static_cast<S*>(update.h.data) + row * update.h.batch + head * update.h.head;
            const bool in_place = vectors<T, S> && whole && update.h.state == 1;
            // The step of channel `channel + c`, in place or in a buffer.
            const auto advance = [&](int c, const auto& decay_of) {
                S* const own = h + (channel + c) * update.h.channel;
                if constexpr (vectors<T, S>)
                    if (in_place) return step_of<T, S, true>(own, B, C, dt[c] * x[c], states, decay_of);
                read_run(h_buffer, own, update.h.state, states);
                const Vec<T> sum = step_of<T, T, false>(h_buffer, B, C, dt[c] * x[c], states, decay_of);
                write_run(own, h_buffer, update.h.state, states);
                return sum;
            };
            for (int c = 0; c < channels; c += lanes<T>) {
                const int count = int(smaller(lanes<T>, channels - c));
                Vec<T> terms[lanes<T>] = {};
                for (int i = 0; i < count; i++) {
                    if (one_rate) {
                        terms[i] =
                            advance(c + i, [&](int64_t, int) SCANLAB_ALWAYS_INLINE { return broadcast(decay[c + i]); });
                        continue;
                    }
                    const T* A = A_buffer;
                    if (dense_A)
                        A = static_cast<const T*>(update.A.data) + head * update.A.head +
                            (channel + c + i) * update.A.channel;
                    else read_states(A_buffer, update.A, 0, head, channel + c + i, states);
                    terms[i] = advance(c + i, [&](int64_t n, int some) SCANLAB_ALWAYS_INLINE {
                        return decays<T>(load_some<T>(A + n, some), broadcast(dt[c + i]), update.log_A);
                    });
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

}  // namespace scanlab::SCANLAB_TARGET
