// THE LOOP: the states of one vector of channels over one block of time, and their gradients.
//
// `recurrence_steps` is the recurrence of the scan; `recurrence_steps_backward` that of its gradients. What is around
// them packs the channels of a tile (tile.h), discretises delta and applies the gate (forward.h, backward.h), and hands
// tiles to threads (scan.cpp).
//
// This source is the loop of every instruction set: kernels.cpp compiles it once for each. They differ in the lanes of
// a vector, in SCANLAB_REGISTERS, and in what cpu/simd.h (loads, stores, multiply_add) and cpu/math.h (exp2) write for
// them.
#pragma once

#include "cpu/strided.h"
#include "selective_scan/native/scan.h"

namespace scanlab::SCANLAB_TARGET {

// A vector of real numbers (one part) or of complex ones (two).
template <class T, int parts>
struct Number {
    Vec<T> part[parts];
};

template <class T, int parts>
SCANLAB_INLINE Number<T, parts> load_number(const T* from) {
    if constexpr (parts == 1) return {load(from)};
    else return {load(from), load(from + lanes<T>)};
}
template <class T, int parts>
SCANLAB_INLINE void store_number(T* to, const Number<T, parts>& x) {
#pragma GCC unroll 2
    for (int p = 0; p < parts; p++) store<T>(to + p * lanes<T>, x.part[p]);
}

// x + a b.
template <class T, int parts>
SCANLAB_INLINE Number<T, parts> plus_product(const Number<T, parts>& x, const Number<T, parts>& a,
                                             const Number<T, parts>& b) {
    if constexpr (parts == 1) return {multiply_add(a.part[0], b.part[0], x.part[0])};
    else
        return {x.part[0] + a.part[0] * b.part[0] - a.part[1] * b.part[1],
                x.part[1] + a.part[0] * b.part[1] + a.part[1] * b.part[0]};
}
template <class T, int parts>
SCANLAB_INLINE Number<T, parts> conjugate(const Number<T, parts>& x) {
    if constexpr (parts == 1) return x;
    else return {x.part[0], -x.part[1]};
}
template <class T, int parts>
SCANLAB_INLINE Number<T, parts> times(const Number<T, parts>& a, const Number<T, parts>& b) {
    if constexpr (parts == 1) return {a.part[0] * b.part[0]};
    else return {a.part[0] * b.part[0] - a.part[1] * b.part[1], a.part[0] * b.part[1] + a.part[1] * b.part[0]};
}
template <class T, int parts>
SCANLAB_INLINE Number<T, parts> scale(Vec<T> s, const Number<T, parts>& a) {
    if constexpr (parts == 1) return {s * a.part[0]};
    else return {s * a.part[0], s * a.part[1]};
}
template <class T, int parts>
SCANLAB_INLINE Number<T, parts> plus_scaled(const Number<T, parts>& x, Vec<T> s, const Number<T, parts>& a) {
    if constexpr (parts == 1) return {x.part[0] + s * a.part[0]};
    else return {x.part[0] + s * a.part[0], x.part[1] + s * a.part[1]};
}
template <class T, int parts>
SCANLAB_INLINE Vec<T> plus_real_product(Vec<T> x, const Number<T, parts>& a, const Number<T, parts>& b) {
    if constexpr (parts == 1) return x + a.part[0] * b.part[0];
    else return x + a.part[0] * b.part[0] - a.part[1] * b.part[1];
}

// The memory of a block of a strided tensor, to be prefetched one cache line at a time: a burst of requests would stall
// a loop, while one request in each step costs nothing.
struct Prefetch {
    const char* first = nullptr;
    int64_t near = 0, far = 0;  // bytes between lines 16 k + i and 16 k + i + 1, and between lines k and k + 16
    SCANLAB_INLINE void request(int line) const {
        __builtin_prefetch(first + (line & 15) * near + (line >> 4) * far, 1, 2);
    }
};

inline Prefetch prefetch_of(const Strided& block) {
    const int64_t time = block.time * size_of(block.type), column = block.column * size_of(block.type);
    if (block.column == 1) return {block.data, time, 16 * time};
    return {block.data, column, time > 0 ? 64 : -64};
}

// One vector of channels over one block of time. Numbers have `parts` parts, each a vector of channels where
// it says [lanes]; rows of B and C have [state][parts], or [state][parts][lanes] and step 0 where constant.
template <class T>
struct Block {
    int steps, num_states;
    bool constant_B, constant_C;
    const T* delta;  // [steps][lanes], after bias and softplus
    Rows<T> u;       // [steps][lanes]
    T* y;            // [steps][lanes]: <C, h>
    const T* A;      // [state][parts][lanes]; the real part times log2(e)
    T* h;            // [state][parts][lanes]: before the first step, and after the last one
    Rows<T> B, C;
    Prefetch prefetches[10];  // the addresses that the next block reads and writes
    int num_prefetches;
    T* decays;   // [steps][state][parts][lanes], kept for the backward pass; or none
    T* history;  // [steps][state][parts][lanes]: h after each step
};

// Inputs and sums of the backward pass of a block.
template <class T>
struct BlockGradient {
    const T* y;       // [steps][lanes]: the gradient of <C, h>
    T* delta_u;       // [steps][lanes]: of delta' u
    T* delta;         // [steps][lanes]: of delta' in the decays, times log2(e)
    T* h;             // [state][parts][lanes]: of h after the last step, and before the first one
    T* A;             // [state][parts][lanes]
    T *B, *C;         // [state][parts][lanes], where constant
    const T* before;  // [state][parts][lanes]: h before the first step
    int channels;     // lanes that have one; all, where several vectors share a pass
};

// B or C of one state: broadcast where it varies over time, a vector of channels where it is constant.
template <class T, int parts, bool constant>
SCANLAB_INLINE Number<T, parts> coefficient(const T* row, int state) {
    if constexpr (constant) return load_number<T, parts>(row + state * parts * lanes<T>);
    else if constexpr (parts == 1) return {broadcast(row[state])};
    else return {broadcast(row[2 * state]), broadcast(row[2 * state + 1])};
}

template <Exp exp, class T, int parts>
SCANLAB_INLINE Number<T, parts> decay(Vec<T> delta, const T* A) {
    const Vec<T> size = exp2<exp>(Pack<T, 1>{delta * load(A)}).of[0];
    if constexpr (parts == 1) {
        return {size};
    } else {
        Pack<T, 1> sine, cosine;
        sine_and_cosine(Pack<T, 1>{delta * load(A + lanes<T>)}, sine, cosine);
        return {size * cosine.of[0], size * sine.of[0]};
    }
}

// All steps of a block for `count` states, which stay in registers:
//
//     h[t] = exp(delta'[t] A) h[t-1] + delta'[t] B[t] u[t],      y[t] += <C[t], h[t]>
//
// `keep` stores decays and the history of h for the backward pass.
template <class T, int parts, Exp exp, int count, bool constant_B, bool constant_C, bool keep>
void recurrence_steps(const Block<T>& block, int first) {
    constexpr int width = lanes<T>, elements = parts * width;
    const T* __restrict A = block.A + first * elements, * __restrict deltas = block.delta, * __restrict u = block.u.first;
    const T* __restrict B = block.B.first + first * parts * (constant_B ? width : 1);
    const T* __restrict C = block.C.first + first * parts * (constant_C ? width : 1);
    T* __restrict y = block.y, * __restrict h_memory = block.h + first * elements;
    T* __restrict decays = nullptr, * __restrict history = nullptr;
    if constexpr (keep) decays = block.decays + first * elements, history = block.history + first * elements;
    const int64_t u_step = block.u.step, B_step = block.B.step, C_step = block.C.step;
    const int64_t history_step = block.num_states * elements;
    Number<T, parts> h[count];
#pragma GCC unroll 16
    for (int n = 0; n < count; n++) h[n] = load_number<T, parts>(h_memory + n * elements);
    for (int t = 0; t < block.steps; t++) {
        if (first == 0)
            for (int i = 0; i < block.num_prefetches; i++) block.prefetches[i].request(t);
        const Vec<T> delta = load(deltas), delta_u = delta * load(u);
        Vec<T> sum[2] = {first == 0 ? Vec<T>{} : load(y) * T(1.0 / parts), Vec<T>{}};
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            const auto a = decay<exp, T, parts>(delta, A + n * elements);
            h[n] = plus_product(scale(delta_u, coefficient<T, parts, constant_B>(B, n)), a, h[n]);
            sum[n % 2] = plus_real_product(sum[n % 2], h[n], coefficient<T, parts, constant_C>(C, n));
            if constexpr (keep) {
                store_number(decays + n * elements, a);
                store_number(history + n * elements, h[n]);
            }
        }
        store<T>(y, (sum[0] + sum[1]) * T(parts));  // where complex, y is twice the real part of <C, h>
        deltas += width, u += u_step, y += width, B += B_step, C += C_step;
        if constexpr (keep) decays += history_step, history += history_step;
    }
#pragma GCC unroll 16
    for (int n = 0; n < count; n++) store_number(h_memory + n * elements, h[n]);
}

// All states of a block, as many at a time as the registers hold.
template <class T, int parts, Exp exp, bool constant_B, bool constant_C, bool keep>
void recurrence(const Block<T>& block) {
    constexpr int most = SCANLAB_REGISTERS / 2 / parts;
    int n = 0;
    for (; n + most <= block.num_states; n += most)
        recurrence_steps<T, parts, exp, most, constant_B, constant_C, keep>(block, n);
    if constexpr (most > 4 && !constant_B && !constant_C)
        for (; n + 4 <= block.num_states; n += 4)
            recurrence_steps<T, parts, exp, 4, constant_B, constant_C, keep>(block, n);
    for (; n < block.num_states; n++) recurrence_steps<T, parts, exp, 1, constant_B, constant_C, keep>(block, n);
}

// The recurrence in the variant that the block and `exp` ask for.
template <class T, int parts, bool keep>
void run_recurrence(const Block<T>& block, Exp exp) {
    constexpr Exp exact = Exp::exact;
    if (block.constant_B)
        return (block.constant_C ? recurrence<T, parts, exact, true, true, keep>
                                 : recurrence<T, parts, exact, true, false, keep>)(block);
    if (block.constant_C) return recurrence<T, parts, exact, false, true, keep>(block);
    if constexpr (sizeof(T) == 4 && parts == 1)
        if (exp == Exp::fast) return recurrence<T, parts, Exp::fast, false, false, keep>(block);
    recurrence<T, parts, exact, false, false, keep>(block);
}

// States that one pass of the backward loop holds in registers; the remaining ones go one by one.
template <int parts>
inline constexpr int state_unroll = SCANLAB_REGISTERS / 8 / parts;

// Elements that the sums over lanes of `count` states take: those of C, then of B, [count][parts] each.
template <class T, int parts, int count>
inline constexpr int sums_size = 2 * count * parts > lanes<T> ? 2 * count * parts : lanes<T>;

// The same for all states of a step.
template <class T, int parts>
inline int64_t sums_step(int64_t state) {
    constexpr int most = state_unroll<parts>;
    return state / most * sums_size<T, parts, most> + state % most * sums_size<T, parts, 1>;
}

// The backward pass of `count` states from the last step of a block to the first. With g the gradient of h after step t
// and a the decay of that step: g grows by conj(C) grad_y; the gradient of B is delta' u g, that of C grad_y conj(h);
// those of A and delta' come from e = g conj(a) conj(h before); and g conj(a) is left for the step before.
//
// `vectors` vectors of channels share a pass, and with it the sums over lanes, which for one vector alone cost a
// quarter of the rest.
template <class T, int parts, int count, bool constant_B, bool constant_C, int vectors>
void recurrence_steps_backward(const Block<T>* blocks, const BlockGradient<T>* gradients, int first, T* sums,
                               int64_t step, bool add) {
    constexpr int width = lanes<T>, elements = parts * width;
    const int64_t history_step = blocks[0].num_states * elements;
    Block<T> own[vectors];  // copies: the stores below could otherwise change them
    BlockGradient<T> to[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) own[v] = blocks[v], to[v] = gradients[v];
    Number<T, parts> g[vectors][count], grad_A[vectors][count];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            g[v][n] = load_number<T, parts>(gradients[v].h + (first + n) * elements);
            grad_A[v][n] = load_number<T, parts>(gradients[v].A + (first + n) * elements);
        }
    const IntVec<T> live = first_lanes<T>(to[0].channels);
    for (int t = own[0].steps - 1; t >= 0; t--) {
        Vec<T> rows[2 * count * parts];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            const Block<T>& block = own[v];
            const BlockGradient<T>& gradient = to[v];
            const T* __restrict a = block.decays + t * history_step + first * elements;
            const T* __restrict h = block.history + t * history_step + first * elements;
            const T* __restrict h_before = t > 0 ? h - history_step : gradient.before + first * elements;
            const T* __restrict B = block.B.first + first * parts * (constant_B ? width : 1) + t * block.B.step;
            const T* __restrict C = block.C.first + first * parts * (constant_C ? width : 1) + t * block.C.step;
            const T* A = block.A + first * elements;
            const Vec<T> delta = load(block.delta + t * width), delta_u = delta * load(block.u[t]);
            const Vec<T> grad_y = load(gradient.y + t * width) * T(parts);
            Vec<T> grad_delta_u[2] = {}, grad_delta[2] = {};
#pragma GCC unroll 16
            for (int n = 0; n < count; n++) {
                const auto c = coefficient<T, parts, constant_C>(C, n);
                g[v][n] = plus_scaled(g[v][n], grad_y, conjugate(c));
                const auto grad_C = scale(grad_y, conjugate(load_number<T, parts>(h + n * elements))),
                           grad_B = scale(delta_u, g[v][n]);
#pragma GCC unroll 2
                for (int p = 0; p < parts; p++) {
                    Vec<T>&row_C = rows[n * parts + p], &row_B = rows[(count + n) * parts + p];
                    row_C = v == 0 ? grad_C.part[p] : row_C + grad_C.part[p];
                    row_B = v == 0 ? grad_B.part[p] : row_B + grad_B.part[p];
                    const int64_t at = (first + n) * elements + p * width;
                    if constexpr (constant_C) store<T>(gradient.C + at, load(gradient.C + at) + grad_C.part[p]);
                    if constexpr (constant_B) store<T>(gradient.B + at, load(gradient.B + at) + grad_B.part[p]);
                }
                const auto b = coefficient<T, parts, constant_B>(B, n);
                grad_delta_u[n % 2] = plus_real_product(grad_delta_u[n % 2], g[v][n], conjugate(b));
                g[v][n] = times(g[v][n], conjugate(load_number<T, parts>(a + n * elements)));
                const auto e = times(g[v][n], conjugate(load_number<T, parts>(h_before + n * elements)));
                grad_A[v][n] = plus_scaled(grad_A[v][n], delta, e);
                Number<T, parts> rate = load_number<T, parts>(A + n * elements);
                if constexpr (parts == 2) rate.part[1] *= log2_e<T>;
                grad_delta[n % 2] = plus_real_product(grad_delta[n % 2], e, conjugate(rate));
            }
            const Vec<T> from_delta_u = grad_delta_u[0] + grad_delta_u[1], from_decay = grad_delta[0] + grad_delta[1];
            store<T>(gradient.delta_u + t * width,
                     first == 0 ? from_delta_u : load(gradient.delta_u + t * width) + from_delta_u);
            store<T>(gradient.delta + t * width,
                     first == 0 ? from_decay : load(gradient.delta + t * width) + from_decay);
        }
        if constexpr (vectors == 1)  // a lane without a channel may hold 0 times infinity
#pragma GCC unroll 16
            for (Vec<T>& row : rows) row = masked<T>(row, live);
        if constexpr (!constant_B || !constant_C) sum_rows<T>(rows, sums + t * step, add);
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++)
#pragma GCC unroll 16
        for (int n = 0; n < count; n++) {
            store_number(gradients[v].h + (first + n) * elements, g[v][n]);
            store_number(gradients[v].A + (first + n) * elements, grad_A[v][n]);
        }
}

template <class T, int parts, bool constant_B, bool constant_C, int vectors>
void recurrence_backward(const Block<T>* blocks, const BlockGradient<T>* gradients, T* sums, bool add) {
    constexpr int most = state_unroll<parts>;
    const int num_states = blocks[0].num_states;
    const int64_t step = sums_step<T, parts>(num_states);
    int n = 0;
    for (; n + most <= num_states; n += most, sums += sums_size<T, parts, most>)
        recurrence_steps_backward<T, parts, most, constant_B, constant_C, vectors>(blocks, gradients, n, sums, step,
                                                                                   add);
    for (; n < num_states; n++, sums += sums_size<T, parts, 1>)
        recurrence_steps_backward<T, parts, 1, constant_B, constant_C, vectors>(blocks, gradients, n, sums, step, add);
}

template <class T, int parts, int vectors>
void run_recurrence_backward(const Block<T>* blocks, const BlockGradient<T>* gradients, T* sums, bool add) {
    if (blocks[0].constant_B)
        return (blocks[0].constant_C
                    ? recurrence_backward<T, parts, true, true, vectors>
                    : recurrence_backward<T, parts, true, false, vectors>)(blocks, gradients, sums, add);
    (blocks[0].constant_C ? recurrence_backward<T, parts, false, true, vectors>
                          : recurrence_backward<T, parts, false, false, vectors>)(blocks, gradients, sums, add);
}

}  // namespace scanlab::SCANLAB_TARGET
