// The backward pass of one task, from its last chunk to its first.
//
// With V[t, s] = a[s+1] ... a[t] (so that W[t, s] = V[t, s] dt[s]), f[t] = a[1] ... a[t], and gradients of the loss
// written g, the outputs and the last state of a chunk (see forward.h) give
//
//     gM[s, t] = x[s] . gy[t]                          the gradient of (C[t] . B[s]) W[t, s], for s <= t
//     gx[s]    = sum over t of (C[t] . B[s]) W[t, s] gy[t]  +  W[last, s] B[s] gh'  +  D gy[s]
//     gB[s]    = sum over t of gM[s, t] W[t, s] C[t]        +  W[last, s] gh' x[s]
//     gC[t]    = sum over s of gM[s, t] W[t, s] B[s]        +  f[t] h gy[t]
//     gh       = sum over t of f[t] C[t] gy[t]^T            +  f[last] gh'
//
// and, with K[s, t] = gM[s, t] (C[t] . B[s]) V[t, s], to which K[s, last] adds V[last, s] B[s] gh' x[s],
//
//     gdt[s]      = sum over t of K[s, t]                          as far as dt multiplies x
//     g(log a)[u] = sum over t >= u of (sum over s < u of dt[s] K[s, t]  +  f[t] gf[t])
//
// where gf[t] = C[t] h gy[t], and gf[last] adds h . gh'. Each term of the last sum is really multiplied by a decay:
// the shorter sum over t >= u of y[t] gy[t] - x[t] gx[t] is the same number as a difference of large ones.
//
// Steps t are the vectors here, the columns of (channel, time) and (state, time); squares have rows s and columns t.
#pragma once

#include <utility>

#include "ssd/native/chunk.h"

namespace scanlab::SCANLAB_TARGET {

struct Backward : Chunk {
    const Gradient& gradient;
    // Of all heads of the task: B (time, state), Bt and Ct (state, time), and C[t] . B[s]; gB and gC as (state, time),
    // the sum of gM W and its transpose; gh.
    float *B_rows, *Bt_rows, *Ct_rows, *scores, *gBt, *gCt, *gscores, *gscores_by_t, *gstates;
    Rows<float> B, Bt, Ct;
    // Of one head: x and gy, the gradient before the gate, as (time, channel) and as (channel, time); M = (C[t] . B[s])
    // W[t, s]; gM, which becomes K.
    float *x_rows, *gy_rows, *xt_rows, *gyt_rows, *M, *K, *gx;
    Rows<float> x, gy, xt, gyt;
    // Numbers of each step, and of each channel.
    float *V, *before_softplus, *to_end, *weights, *gf, *gweights, *gdt, *left, *D, *gate, *y;

    Backward(const Call& call, const Gradient& gradient, const Task& task, Arena& arena)
        : Chunk(call, task, arena), gradient(gradient) {
        B_rows = arena.take_rows(call.chunk, call.state);
        for (float** rows : {&Bt_rows, &Ct_rows, &gBt, &gCt}) *rows = arena.take_rows(call.state, call.chunk);
        for (float** square : {&scores, &gscores, &gscores_by_t, &M, &K})
            *square = arena.take_rows(call.chunk, call.chunk);
        gstates = arena.take_rows(task.heads * call.state, call.head_dim);
        for (float** rows : {&x_rows, &gy_rows, &gx}) *rows = arena.take_rows(call.chunk, call.head_dim);
        for (float** rows : {&xt_rows, &gyt_rows}) *rows = arena.take_rows(call.head_dim, call.chunk);
        for (float** numbers : {&V, &before_softplus, &to_end, &weights, &gf, &gweights, &gdt, &left})
            *numbers = arena.take(call.chunk);
        for (float** numbers : {&D, &gate, &y}) *numbers = arena.take(call.head_dim);
    }

    float* gstate_of(int64_t head) const { return gstates + (head - task.head) * call.state * channel_row; }

    void run() {
        for (int64_t head = task.head; head < task.head + task.heads; head++)
            read_state(call, gradient.final, task.batch, head, gstate_of(head));
        for (int64_t first = (chunks(call) - 1) * call.chunk; first >= 0; first -= call.chunk) {
            enter(first);
            project();
            for (int64_t head = task.head; head < task.head + task.heads; head++) {
                float* const gh = gstate_of(head);
                x = by_time(call.x, head, call.head_dim, true, x_rows);
                gy = call.z.data ? through_gate(head) : by_time(gradient.out, head, call.head_dim, true, gy_rows);
                xt = turned(x, call.head_dim, xt_rows);
                gyt = turned(gy, call.head_dim, gyt_rows);
                discretize(head, before_softplus);
                through_states(kept_state(head), gh);
                through_scores();
                discretize_dt(head);
                inputs(head, gh);
                reverse_state(gh);
            }
            projections();
        }
        for (int64_t head = task.head; head < task.head + task.heads; head++)
            write_state(call, gradient.initial, task.batch, head, gstate_of(head));
    }

    void project() {
        B = by_time(call.B, task.group, call.state, false, B_rows);
        Bt = by_channel(call.B, task.group, call.state, Bt_rows);
        Ct = by_channel(call.C, task.group, call.state, Ct_rows);
        product_above(B, steps, Ct, call.state,
                      [&](int64_t s, int64_t t, Vec<float> value) { store<float>(scores + s * step_row + t, value); });
        for (float* sums : {gBt, gCt}) clear(sums, call.state * step_row);
        clear(gscores, call.chunk * step_row);
    }

    // gy = gout silu(z), and the gradient of z.
    Rows<float> through_gate(int64_t head) {
        for (int t = 0; t < steps; t++) {
            float* const row = gy_rows + t * channel_row;
            read_step(gradient.out, head, t, row);
            read_step(call.z, head, t, gate);
            read_step(call.ungated, head, t, y);
            for (int64_t p = 0; p < call.head_dim; p += lanes<float>) {
                const Vec<float> own = load<float>(gate + p), s = sigmoid<float>(own), gout = load<float>(row + p);
                store<float>(row + p, gout * own * s);
                store<float>(gate + p, gout * load<float>(y + p) * s * (1.f + own * (1.f - s)));
            }
            write_step(gradient.z, head, t, gate);
        }
        return {gy_rows, channel_row};
    }

    // The products with h and gh': their shares of gB and gC, gf, and the gradient of W[last, s] (`gweights`).
    void through_states(const float* h, const float* gh) {
        to_end[steps - 1] = 1;
        for (int s = steps - 1; s > 0; s--) to_end[s - 1] = to_end[s] * decay[s];
        for (int s = 0; s < steps; s++) weights[s] = to_end[s] * dt[s];
        for (float* sums : {gf, gweights}) clear(sums, step_row);
        const auto add = [&](float* to, Vec<float> value)
                             SCANLAB_ALWAYS_INLINE { store<float>(to, load<float>(to) + value); };
        product({gh, channel_row}, call.state, xt, steps, call.head_dim, [&](int64_t n, int64_t s, Vec<float> value) {
            add(gweights + s, load<float>(Bt[int(n)] + s) * value);
            add(gBt + n * step_row + s, load<float>(weights + s) * value);
        });
        product({h, call.head_dim}, call.state, gyt, steps, call.head_dim, [&](int64_t n, int64_t t, Vec<float> value) {
            add(gf + t, load<float>(Ct[int(n)] + t) * value);
            add(gCt + n * step_row + t, load<float>(from_start + t) * value);
        });
        Vec<float> both = {};
        for (int64_t n = 0; n < call.state; n++)
            for (int64_t p = 0; p < call.head_dim; p += lanes<float>)
                both += load_some<float>(h + n * call.head_dim + p, int(smaller(lanes<float>, call.head_dim - p))) *
                        load<float>(gh + n * channel_row + p);
        gf[steps - 1] += sum_of<float>(both);
    }

    // M, K, and the part of dt's gradient from x. Row s of V is row s + 1 times a[s + 1].
    void through_scores() {
        product_above(x, steps, gyt, call.head_dim,
                      [&](int64_t s, int64_t t, Vec<float> value) { store<float>(K + s * step_row + t, value); });
        clear(V, step_row);
        for (int s = steps - 1; s >= 0; s--) {
            const Vec<float> next = broadcast(s + 1 < steps ? decay[s + 1] : 0), own = broadcast(dt[s]);
            const int64_t first = s / lanes<float> * lanes<float>, row = s * step_row;
            for (int64_t t = first; t < steps; t += lanes<float>) store<float>(V + t, load<float>(V + t) * next);
            V[s] = 1;
            Vec<float> sum = {};
            for (int64_t t = first; t < steps; t += lanes<float>) {
                const Vec<float> score = load<float>(scores + row + t), gM = load<float>(K + row + t);
                const Vec<float> gscore = gM * load<float>(V + t), product = score * load<float>(V + t);
                store<float>(gscores + row + t, load<float>(gscores + row + t) + gscore * own);
                store<float>(M + row + t, product * own);
                store<float>(K + row + t, gM * product);
                sum += gM * product;
            }
            K[row + steps - 1] += to_end[s] * gweights[s];
            gdt[s] = sum_of<float>(sum) + to_end[s] * gweights[s];
        }
    }

    // The gradients of dt and A. `left` is, for each t, the inner sum of g(log a)[u].
    void discretize_dt(int64_t head) {
        for (int t = 0; t < steps; t += lanes<float>)
            store<float>(left + t, load<float>(from_start + t) * load<float>(gf + t));
        const float rate = call.A.data[head * call.A.head];
        float gA = 0;
        for (int u = 0; u < steps; u++) {
            const int64_t first = u / lanes<float> * lanes<float>;
            const Vec<float> own = broadcast(dt[u]);
            Vec<float> sum = {};
            for (int64_t t = first; t < steps; t += lanes<float>) {
                const Vec<float> value = load<float>(left + t);
                sum += value;
                store<float>(left + t, multiply_add(own, load<float>(K + u * step_row + t), value));
            }
            left[u] = 0;
            const float glog_a = sum_of<float>(sum);
            gA += dt[u] * glog_a;
            gdt[u] += rate * glog_a;
        }
        gradient.A[task.batch * call.heads + head] += gA;
        for (int t = 0; t < steps; t += lanes<float>) {
            const Vec<float> before = load<float>(before_softplus + t);
            const Vec<float> step = call.softplus ? softplus<float>(before) : before;
            const Vec<float> slope = call.softplus ? sigmoid<float>(before) : broadcast(1.f);
            const IntVec<float> inside = (step >= call.lowest_dt) & (step <= call.highest_dt);
            store<float>(gdt + t, masked<float>(load<float>(gdt + t) * slope, inside));
        }
        for (int t = 0; t < steps; t++) gradient.dt_bias[task.batch * call.heads + head] += gdt[t];
        write_run(gradient.dt + (task.batch * call.length + begin) * call.heads + head, gdt, call.heads, steps);
    }

    // The gradients of x and D.
    void inputs(int64_t head, const float* gh) {
        clear(D, channel_row);
        if (call.D.data) read_run(D, call.D.data + head * call.D.head, call.D.channel, call.head_dim);
        for (int64_t s = 0; s < steps; s += tile_rows) {
            const LeftRows own_B(B, s, steps), own_M({M, step_row}, s, steps);
            for_columns(call.head_dim, [&](int64_t column, auto vectors) {
                Sums<vectors.value> sum = {};
                multiply<vectors.value>(sum, own_B, {gh + column, channel_row}, call.state);
                for_sums<vectors.value>(sum, steps - s, [&](int r, int v, Vec<float>& value) {
                    value = multiply_add(load<float>(D + column + v), load<float>(gy[int(s + r)] + column + v),
                                         value * broadcast(weights[s + r]));
                });
                multiply_above<vectors.value>(sum, own_M, {gy.first + column, gy.step}, s, steps);
                for_sums<vectors.value>(sum, steps - s, [&](int r, int v, Vec<float> value) {
                    store<float>(gx + (s + r) * channel_row + column + v, value);
                });
            });
        }
        for (int s = 0; s < steps; s++) write_step(gradient.x, head, s, gx + s * channel_row);
        if (!call.D.data) return;
        float* const gD = gradient.D + (task.batch * call.heads + head) * call.head_dim;
        for (int64_t p = 0; p < call.head_dim; p += lanes<float>) {
            Vec<float> sum = {};
            for (int t = 0; t < steps; t++) sum += load<float>(x[t] + p) * load<float>(gy[t] + p);
            put<float>(gD + p, sum, int(smaller(lanes<float>, call.head_dim - p)), true);
        }
    }

    // gh = Ct (from_start gy) + from_start[last] gh'.
    void reverse_state(float* gh) {
        for (int t = 0; t < steps; t++)
            for (int64_t p = 0; p < call.head_dim; p += lanes<float>)
                store<float>(gx + t * channel_row + p, load<float>(gy[t] + p) * broadcast(from_start[t]));
        const Vec<float> decayed = broadcast(from_start[steps - 1]);
        product(Ct, call.state, {gx, channel_row}, call.head_dim, steps, [&](int64_t n, int64_t p, Vec<float> added) {
            float* const own = gh + n * channel_row + p;
            store<float>(own, multiply_add(load<float>(own), decayed, added));
        });
    }

    // The gradients of B and C, as far as the heads of this task see them.
    void projections() {
        read_rows<float>(gscores, 1, step_row, steps, steps, gscores_by_t, step_row);
        const auto add_to = [&](float* sums) {
            return [=, this](int64_t n, int64_t t, Vec<float> value) SCANLAB_ALWAYS_INLINE {
                float* const to = sums + n * step_row + t;
                store<float>(to, load<float>(to) + value);
            };
        };
        product(Ct, call.state, {gscores_by_t, step_row}, steps, steps, add_to(gBt));
        product(Bt, call.state, {gscores, step_row}, steps, steps, add_to(gCt));
        const int64_t own = call.heads / call.groups, part = (task.head - task.group * own) / call.task_heads;
        const int64_t step = call.groups * call.state;  // between times
        const int64_t first = ((part * call.batch + task.batch) * call.length + begin) * step + task.group * call.state;
        for (int64_t t = 0; t < steps; t += lanes<float>) {
            const int count = int(smaller(lanes<float>, steps - t));
            for (const auto& [to, from] : {std::pair(gradient.B, gBt), std::pair(gradient.C, gCt)})
                write_rows<float>(to + first + t * step, 1, step, int(call.state), count, from + t, step_row, false);
        }
    }
};

}  // namespace scanlab::SCANLAB_TARGET
