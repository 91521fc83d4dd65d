// The forward pass of one task, chunk by chunk.
//
// With the decay between two times of a chunk and the step size at its beginning,
//
//     W[t, s] = dt[s] a[s+1] a[s+2] ... a[t],          W[s, s] = dt[s],
//
// the outputs and the state after the chunk are
//
//     y[t]  = sum over s <= t of (C[t] . B[s]) W[t, s] x[s]  +  a[1] ... a[t] C[t] h
//     h'    = sum over s of B[s] W[last, s] x[s]^T           +  a[1] ... a[last] h
//
// Row t of W is row t - 1 times a[t]: decays are only ever multiplied, so nothing overflows, and a decay of zero, where
// a new sequence begins, needs no case of its own. x lies as (time, channel) and h as (state, channel), so that the
// channels of a head are the vectors of every product.
#pragma once

#include "ssd/native/chunk.h"

namespace scanlab::SCANLAB_TARGET {

struct Forward : Chunk {
    // Of all heads of the task: C (time, state), Bt (state, time), and C[t] . B[s] (t, s).
    float *C_rows, *Bt_rows, *scores, *states;
    Rows<float> C, Bt;
    // Of one head: scores times W, the last row of W, x and that row times x, y.
    float *weighted_scores, *weights, *x_rows, *weighted_x, *y, *D, *gate;
    Rows<float> x;

    Forward(const Call& call, const Task& task, Arena& arena) : Chunk(call, task, arena) {
        C_rows = arena.take_rows(call.chunk, call.state);
        Bt_rows = arena.take_rows(call.state, call.chunk);
        states = arena.take_rows(task.heads * call.state, call.head_dim);
        for (float** square : {&scores, &weighted_scores}) *square = arena.take_rows(call.chunk, call.chunk);
        for (float** rows : {&x_rows, &weighted_x, &y}) *rows = arena.take_rows(call.chunk, call.head_dim);
        for (float** row : {&D, &gate}) *row = arena.take(call.head_dim);
        weights = arena.take(call.chunk);
    }

    float* state_of(int64_t head) const { return states + (head - task.head) * call.state * channel_row; }

    void run() {
        for (int64_t head = task.head; head < task.head + task.heads; head++)
            read_state(call, call.initial, task.batch, head, state_of(head));
        for (int64_t first = 0; first < call.length; first += call.chunk) {
            enter(first);
            project();
            for (int64_t head = task.head; head < task.head + task.heads; head++) {
                float* const h = state_of(head);
                if (call.chunk_states)
                    for (int64_t n = 0; n < call.state; n++)
                        write_run(kept_state(head) + n * call.head_dim, h + n * channel_row, 1, call.head_dim);
                x = by_time(call.x, head, call.head_dim, true, x_rows);
                discretize(head);
                weigh();
                outputs(h);
                advance(h);
                epilogue(head);
            }
        }
        for (int64_t head = task.head; head < task.head + task.heads; head++)
            write_state(call, call.final, task.batch, head, state_of(head));
    }

    void project() {
        C = by_time(call.C, task.group, call.state, false, C_rows);
        Bt = by_channel(call.B, task.group, call.state, Bt_rows);
        product(C, steps, Bt, steps, call.state,
                [&](int64_t t, int64_t s, Vec<float> value) { store<float>(scores + t * step_row + s, value); });
    }

    // W, row after row, times the scores; the last row of W stays in `weights`.
    void weigh() {
        clear(weights, step_row);
        for (int t = 0; t < steps; t++) {
            const Vec<float> own = broadcast(decay[t]);
            for (int s = 0; s < t; s += lanes<float>) store<float>(weights + s, load<float>(weights + s) * own);
            weights[t] = dt[t];
            for (int64_t s = 0, row = t * step_row; s <= t; s += lanes<float>)
                store<float>(weighted_scores + row + s, load<float>(weights + s) * load<float>(scores + row + s));
        }
    }

    // y = weighted_scores x + from_start C h.
    void outputs(const float* h) {
        for (int64_t t = 0; t < steps; t += tile_rows) {
            const LeftRows own_C(C, t, steps), own_scores({weighted_scores, step_row}, t, steps);
            for_columns(call.head_dim, [&](int64_t column, auto vectors) {
                Sums<vectors.value> sum = {};
                multiply<vectors.value>(sum, own_C, {h + column, channel_row}, call.state);
                for_sums<vectors.value>(sum, steps - t,
                                        [&](int r, int, Vec<float>& value) { value *= broadcast(from_start[t + r]); });
                multiply_below<vectors.value>(sum, own_scores, {x.first + column, x.step}, t, steps);
                for_sums<vectors.value>(sum, steps - t, [&](int r, int v, Vec<float> value) {
                    store<float>(y + (t + r) * channel_row + column + v, value);
                });
            });
        }
    }

    // h = Bt (weights x) + from_start[last] h.
    void advance(float* h) {
        for (int s = 0; s < steps; s++)
            for (int64_t p = 0; p < call.head_dim; p += lanes<float>)
                store<float>(weighted_x + s * channel_row + p, load<float>(x[s] + p) * broadcast(weights[s]));
        const Vec<float> decayed = broadcast(from_start[steps - 1]);
        product(Bt, call.state, {weighted_x, channel_row}, call.head_dim, steps,
                [&](int64_t n, int64_t p, Vec<float> added) {
                    float* const own = h + n * channel_row + p;
                    store<float>(own, multiply_add(load<float>(own), decayed, added));
                });
    }

    // out = (y + D x) silu(z); without D nothing is added, for 0 times an infinite x is not 0.
    void epilogue(int64_t head) {
        clear(D, channel_row);
        if (call.D.data) read_run(D, call.D.data + head * call.D.head, call.D.channel, call.head_dim);
        for (int t = 0; t < steps; t++) {
            float* const row = y + t * channel_row;
            if (call.D.data)
                for (int64_t p = 0; p < call.head_dim; p += lanes<float>)
                    store<float>(row + p,
                                 multiply_add(load<float>(D + p), load<float>(x[t] + p), load<float>(row + p)));
            if (call.ungated.data) write_step(call.ungated, head, t, row);
            if (call.z.data) {
                read_step(call.z, head, t, gate);
                for (int64_t p = 0; p < call.head_dim; p += lanes<float>) {
                    const Vec<float> own = load<float>(gate + p);
                    store<float>(row + p, load<float>(row + p) * own * sigmoid<float>(own));
                }
            }
            write_step(call.out, head, t, row);
        }
    }
};

}  // namespace scanlab::SCANLAB_TARGET
