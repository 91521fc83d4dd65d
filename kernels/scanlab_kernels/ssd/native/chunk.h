// Shared by both passes: the addresses of a chunk's tensors, and the step sizes and decays of a head.
#pragma once

#include "ssd/native/product.h"
#include "ssd/native/ssd.h"

namespace scanlab::SCANLAB_TARGET {

using namespace ssd;

// Memory handed out piece by piece, each on a whole vector; without memory it only counts.
struct Arena {
    float* memory = nullptr;
    int64_t used = 0;

    float* take(int64_t numbers) {
        float* const piece = memory ? memory + used : nullptr;
        used += whole_vectors<float>(numbers);
        return piece;
    }
    float* take_rows(int64_t rows, int64_t columns) { return take(rows * whole_vectors<float>(columns)); }
};

struct Chunk {
    const Call& call;
    const Task& task;
    // The lengths of rows of steps, channels and states.
    const int64_t step_row, channel_row, state_row;
    int64_t begin = 0;
    int steps = 0;
    float *dt, *decay, *from_start;  // dt', a, and a[1] ... a[t]; zero after the last step

    Chunk(const Call& call, const Task& task, Arena& arena)
        : call(call),
          task(task),
          step_row(whole_vectors<float>(call.chunk)),
          channel_row(whole_vectors<float>(call.head_dim)),
          state_row(whole_vectors<float>(call.state)) {
        for (float** numbers : {&dt, &decay, &from_start}) *numbers = arena.take(call.chunk);
    }

    void enter(int64_t first) { begin = first, steps = int(smaller(call.chunk, call.length - first)); }

    Strided block(const Steps& tensor, int64_t head) const {
        char* data = static_cast<char*>(tensor.data);
        const int64_t first = task.batch * tensor.batch + begin * tensor.time + head * tensor.head;
        return {tensor.type, data + first * size_of(tensor.type), tensor.time, tensor.channel};
    }
    // (time, channel), in place where it can be.
    Rows<float> by_time(const Steps& tensor, int64_t head, int64_t columns, bool of_whole_vectors,
                        float* buffer) const {
        return rows<float>(block(tensor, head), steps, int(columns), of_whole_vectors, buffer,
                           whole_vectors<float>(columns));
    }
    // (channel, time), copied, with zeros after the last step.
    Rows<float> by_channel(const Steps& tensor, int64_t head, int64_t columns, float* buffer) const {
        const Strided from = block(tensor, head);
        typed<float>(from, [&](const auto* first) {
            read_rows<float>(first, from.column, from.time, int(columns), steps, buffer, step_row);
        });
        return {buffer, step_row};
    }

    // (channel, time) of rows (time, channel), with zeros after the last step.
    Rows<float> turned(Rows<float> from, int64_t columns, float* buffer) const {
        read_rows<float>(from.first, 1, from.step, int(columns), steps, buffer, step_row);
        return {buffer, step_row};
    }
    // The channels of one step, with zeros to the end of the vector.
    void read_step(const Steps& tensor, int64_t head, int step, float* to) const {
        const Strided from = block(tensor, head);
        typed<float>(from,
                     [&](const auto* first) { read_run(to, first + step * from.time, from.column, call.head_dim); });
    }
    void write_step(const Steps& tensor, int64_t head, int step, const float* from) const {
        const Strided to = block(tensor, head);
        typed<float>(to, [&](auto* first) { write_run(first + step * to.time, from, to.column, call.head_dim); });
    }

    // The step sizes and decays of a head; `before_softplus` keeps dt + dt_bias where it is wanted.
    void discretize(int64_t head, float* before_softplus = nullptr) {
        const PerHead& from = call.dt;
        read_run(dt, from.data + task.batch * from.batch + begin * from.time + head * from.head, from.time, steps);
        const float bias = call.dt_bias.data ? call.dt_bias.data[head * call.dt_bias.head] : 0;
        const float rate = call.A.data[head * call.A.head] * log2_e<float>;
        for (int t = 0; t < steps; t += lanes<float>) {
            Vec<float> step = load<float>(dt + t) + bias;
            if (before_softplus) store<float>(before_softplus + t, step);
            if (call.softplus) step = softplus<float>(step);
            step = at_most(at_least(step, call.lowest_dt), call.highest_dt);
            store<float>(dt + t, step);
            store<float>(decay + t, exp2<float>(step * rate));
        }
        if (const int32_t* sequence = call.seq_idx.data) {
            sequence += task.batch * call.seq_idx.batch + begin * call.seq_idx.time;
            int32_t before = begin ? sequence[-call.seq_idx.time] : 0;
            for (int t = 0; t < steps; t++, sequence += call.seq_idx.time) {
                if (*sequence != before) decay[t] = 0;
                before = *sequence;
            }
        }
        clear(from_start, step_row);
        float product = 1;
        for (int t = 0; t < steps; t++) from_start[t] = product *= decay[t];
    }

    // The state before this chunk that the forward pass kept, (state, head_dim).
    float* kept_state(int64_t head) const {
        const int64_t index = (task.batch * chunks(call) + begin / call.chunk) * call.heads + head;
        return call.chunk_states + index * call.state * call.head_dim;
    }
};

// A state (head_dim, state) as rows of channels (state, head_dim), and back.
inline void read_state(const Call& call, const States& from, int64_t batch, int64_t head, float* h) {
    const int64_t row = whole_vectors<float>(call.head_dim);
    if (!from.data) return clear(h, call.state * row);
    const float* first = from.data + batch * from.batch + head * from.head;
    read_rows<float>(first, from.state, from.channel, int(call.state), int(call.head_dim), h, row);
}
inline void write_state(const Call& call, const States& to, int64_t batch, int64_t head, const float* h) {
    if (!to.data) return;
    float* const first = to.data + batch * to.batch + head * to.head;
    for (int64_t p = 0; p < call.head_dim; p += lanes<float>)
        write_rows<float>(first + p * to.channel, to.state, to.channel, int(call.state),
                          int(smaller(lanes<float>, call.head_dim - p)), h + p, whole_vectors<float>(call.head_dim),
                          false);
}

}  // namespace scanlab::SCANLAB_TARGET
