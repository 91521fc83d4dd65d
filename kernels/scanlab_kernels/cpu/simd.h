// Vectors of one instruction set: loads and stores of every storage type, transposes.
//
// The macro SCANLAB_TARGET names the namespace, so that units compiled for different instruction sets share no symbol;
// only headers without inline functions of their own may be included here for the same reason.
#pragma once

#include <stdint.h>
#include <string.h>
#include <initializer_list>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(SCANLAB_NEON)
#include <arm_neon.h>
#endif

#include "cpu/types.h"

#if defined(__AVX512F__)
#define SCANLAB_VECTOR_BYTES 64
#define SCANLAB_REGISTERS 32
#elif defined(__AVX2__)
#define SCANLAB_VECTOR_BYTES 32
#define SCANLAB_REGISTERS 16
#elif defined(__aarch64__)
#define SCANLAB_VECTOR_BYTES 16
#define SCANLAB_REGISTERS 32
#else
#define SCANLAB_VECTOR_BYTES 16
#define SCANLAB_REGISTERS 16
#endif

#define SCANLAB_ALWAYS_INLINE __attribute__((always_inline))  // of lambdas, too
#define SCANLAB_INLINE inline SCANLAB_ALWAYS_INLINE

namespace scanlab::SCANLAB_TARGET {

template <class T>
inline constexpr int lanes = SCANLAB_VECTOR_BYTES / sizeof(T);

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(SCANLAB_VECTOR_BYTES)));
    typedef T loose __attribute__((vector_size(SCANLAB_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vec = typename VectorOf<T>::type;

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

template <class T>
struct Integer;
template <>
struct Integer<float> {
    typedef int32_t type;
    static constexpr int mantissa_bits = 23, bias = 127;
};
template <>
struct Integer<double> {
    typedef int64_t type;
    static constexpr int mantissa_bits = 52, bias = 1023;
};
template <class T>
using IntVec = Vec<typename Integer<T>::type>;

template <class To, class From>
SCANLAB_INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

template <class T>
SCANLAB_INLINE Vec<T> broadcast(T value) {
    return value - Vec<T>{};  // unlike 0 + value this keeps the sign of zero, so compilers see that it is a copy
}

// a b + c in one rounding where there is an instruction for it. Compilers fuse by themselves, but choose which
// product of a sum they fuse: where it matters that a b comes last, this says so.
#if defined(__AVX512F__)
SCANLAB_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
SCANLAB_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
    return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__AVX2__)
SCANLAB_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
SCANLAB_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
    return _mm256_fmadd_pd(a, b, c);
}
#elif defined(SCANLAB_NEON)
SCANLAB_INLINE Vec<float> multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return vfmaq_f32(c, a, b); }
SCANLAB_INLINE Vec<double> multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) { return vfmaq_f64(c, a, b); }
#else
template <class V>
SCANLAB_INLINE V multiply_add(V a, V b, V c) {
    return a * b + c;
}
#endif

// The larger and the smaller of both, and b where one is NaN: compilers do not find the instruction for it.
#if defined(__AVX512F__)
SCANLAB_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
SCANLAB_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
SCANLAB_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a, b); }
SCANLAB_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX2__)
SCANLAB_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
SCANLAB_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
SCANLAB_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
SCANLAB_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a, b); }
#elif defined(SCANLAB_NEON)
SCANLAB_INLINE Vec<float> maximum(Vec<float> a, Vec<float> b) { return vmaxq_f32(a, b); }
SCANLAB_INLINE Vec<double> maximum(Vec<double> a, Vec<double> b) { return vmaxq_f64(a, b); }
SCANLAB_INLINE Vec<float> minimum(Vec<float> a, Vec<float> b) { return vminq_f32(a, b); }
SCANLAB_INLINE Vec<double> minimum(Vec<double> a, Vec<double> b) { return vminq_f64(a, b); }
#else
template <class V>
SCANLAB_INLINE V maximum(V a, V b) {
    return a > b ? a : b;
}
template <class V>
SCANLAB_INLINE V minimum(V a, V b) {
    return a < b ? a : b;
}
#endif
// NaN in x comes through both.
template <class T>
SCANLAB_INLINE Vec<T> at_least(Vec<T> x, T low) {
    return maximum(broadcast(low), x);
}
template <class T>
SCANLAB_INLINE Vec<T> at_most(Vec<T> x, T high) {
    return minimum(broadcast(high), x);
}
template <class T>
SCANLAB_INLINE Vec<T> absolute(Vec<T> x) {
    using I = typename Integer<T>::type;
    return bits_as<Vec<T>>(bits_as<IntVec<T>>(x) & ~(I(1) << (8 * sizeof(T) - 1)));
}

// Storage types: a vector of T from lanes<T> adjacent elements, and back, rounding to nearest even. Each stored value
// comes from arithmetic, so that NaNs are quiet.
template <class T>
SCANLAB_INLINE Vec<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorOf<T>::loose*>(from);
}
template <class T>
SCANLAB_INLINE void store(T* to, Vec<T> value) {
    *reinterpret_cast<typename VectorOf<T>::loose*>(to) = value;
}

typedef uint16_t Half __attribute__((vector_size(SCANLAB_VECTOR_BYTES / 2)));
typedef uint32_t Word __attribute__((vector_size(SCANLAB_VECTOR_BYTES)));
typedef uint16_t Words __attribute__((vector_size(SCANLAB_VECTOR_BYTES)));

// All bits of the first `count` lanes, and those of x that are in a mask.
template <class T>
SCANLAB_INLINE IntVec<T> first_lanes(int count) {
    typename Integer<T>::type bits[lanes<T>];
    for (int lane = 0; lane < lanes<T>; lane++) bits[lane] = -(lane < count);
    IntVec<T> mask;
    memcpy(&mask, bits, sizeof(mask));
    return mask;
}
template <class T>
SCANLAB_INLINE Vec<T> masked(Vec<T> x, IntVec<T> mask) {
    return bits_as<Vec<T>>(bits_as<IntVec<T>>(x) & mask);
}

template <int... lane>
struct Lanes {};
template <int count, int... lane>
struct CountTo : CountTo<count - 1, count - 1, lane...> {};
template <int... lane>
struct CountTo<0, lane...> {
    typedef Lanes<lane...> type;
};

// Halves as the high words of lanes, and back, in as few instructions as there are for it.
template <int... word>
SCANLAB_INLINE Word high_words(Half halves, Lanes<word...>) {
#if defined(__AVX512F__)
    const __m512i at = __m512i(Words{(word / 2)...}), words = _mm512_castsi256_si512(__m256i(halves));
    return Word(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, at, words));
#elif defined(__AVX2__)
    return Word(_mm256_cvtepu16_epi32(__m128i(halves))) << 16;
#else
    return __builtin_convertvector(halves, Word) << 16;
#endif
}
template <int... word>
SCANLAB_INLINE Half high_words(Word numbers, Lanes<word...>) {
#if defined(__AVX512F__)
    const __m512i at = __m512i(Words{((2 * word + 1) % 32)...});
    return Half(_mm512_castsi512_si256(_mm512_permutexvar_epi16(at, __m512i(numbers))));
#elif defined(__AVX2__)
    const __m256i words = __m256i(numbers >> 16);
    return Half(_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
#else
    return __builtin_convertvector(numbers >> 16, Half);
#endif
}

template <class T>
SCANLAB_INLINE Vec<T> load(const bfloat16* from) {
    Half half;
    memcpy(&half, from, sizeof(half));
    return bits_as<Vec<float>>(high_words(half, CountTo<SCANLAB_VECTOR_BYTES / 2>::type()));
}
template <class T>
SCANLAB_INLINE void store(bfloat16* to, Vec<T> value) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits_as<__m256i>(_mm512_cvtneps_pbh(value)));
#else
    // An odd last bit makes a tie more than a tie. NaN stays as it is: rounding up could overflow it.
    const Word bits = bits_as<Word>(value), untied = bits | (bits >> 16 & 1);
    const Half half = high_words(value == value ? untied + 0x7fff : untied, CountTo<SCANLAB_VECTOR_BYTES / 2>::type());
    memcpy(to, &half, sizeof(half));
#endif
}

template <class T>
SCANLAB_INLINE Vec<T> load(const float16* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(SCANLAB_NEON)
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from->bits)));
#else
    Half half;
    memcpy(&half, from, sizeof(half));
    Word word = __builtin_convertvector(half, Word), sign = (word & 0x8000) << 16, rest = (word & 0x7fff) << 13;
    // Subnormals get the exponent of the smallest normal number, which is then taken away. They never are denormal
    // floats: kernels flush those to zero.
    Word subnormal = bits_as<Word>(bits_as<Vec<float>>(rest | 0x38800000) - 0x1p-14f);
    Word finite = rest < 0x00800000 ? subnormal : rest + 0x38000000;
    return bits_as<Vec<float>>(sign | ((word & 0x7fff) >= 0x7c00 ? (rest | 0x7f800000) : finite));
#endif
}
template <class T>
SCANLAB_INLINE void store(float16* to, Vec<T> value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, 0));
#elif defined(SCANLAB_NEON)
    vst1_u16(&to->bits, vreinterpret_u16_f16(vcvt_f16_f32(value)));
#else
    Word bits = bits_as<Word>(value), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    Word normal = (rest + (uint32_t(-112) << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
    // Below the normal range adding 0.5 makes the hardware round at the last bit of a subnormal.
    Word subnormal = bits_as<Word>(bits_as<Vec<float>>(rest) + 0.5f) - 0x3f000000;
    Word finite = rest < 0x38800000 ? subnormal : normal;
    Word special = rest > 0x7f800000 ? (rest >> 13 & 0x3ff) | 0x7e00 : Word{} + 0x7c00;
    Half half = __builtin_convertvector(sign | (rest >= 0x477ff000 ? special : finite), Half);
    memcpy(to, &half, sizeof(half));
#endif
}

// The first `count` lanes; the others are zero when loaded and left alone when stored.
template <class T, class S>
SCANLAB_INLINE Vec<T> load_some(const S* from, int count) {
    if (count >= lanes<T>) return load<T>(from);
    S some[lanes<T>] = {};
    memcpy(some, from, count * sizeof(S));
    return load<T>(some);
}
template <class T, class S>
SCANLAB_INLINE void store_some(S* to, Vec<T> value, int count) {
    if (count >= lanes<T>) return store<T>(to, value);
    S some[lanes<T>];
    store<T>(some, value);
    memcpy(to, some, count * sizeof(S));
}

// Elements of the parts of a register between which moving costs more than within them.
template <class T>
inline constexpr int part = 16 / sizeof(T);

// Half of each part of a, from element `from` on, interleaved with the same half of b.
template <class T, int from, int... lane>
SCANLAB_INLINE Vec<T> interleaved_parts(Vec<T> a, Vec<T> b, Lanes<lane...>) {
    constexpr int size = part<T>, width = sizeof...(lane);
    return __builtin_shufflevector(a, b, (lane / size * size + lane % size / 2 + from + lane % 2 * width)...);
}

// One part from each of the places that lie `step` apart.
template <class T>
SCANLAB_INLINE Vec<T> load_parts(const T* from, [[maybe_unused]] int64_t step) {
#if SCANLAB_VECTOR_BYTES == 16
    return load<T>(from);
#else
    const auto at = [&](int i)
                        SCANLAB_ALWAYS_INLINE { return _mm_loadu_ps(reinterpret_cast<const float*>(from + i * step)); };
#if defined(__AVX512F__)
    const __m512 first = _mm512_insertf32x4(_mm512_castps128_ps512(at(0)), at(1), 1);
    return bits_as<Vec<T>>(_mm512_insertf32x4(_mm512_insertf32x4(first, at(2), 2), at(3), 3));
#else
    return bits_as<Vec<T>>(_mm256_insertf128_ps(_mm256_castps128_ps256(at(0)), at(1), 1));
#endif
#endif
}

// The columns of a square whose rows lie `step` apart in memory. Parts come to their places as they are loaded, which
// spares half of the moves between registers.
template <class T>
SCANLAB_INLINE void load_columns(const T* from, int64_t step, Vec<T> (&columns)[lanes<T>]) {
    constexpr int width = lanes<T>, size = part<T>;
    typename CountTo<width>::type all;
#pragma GCC unroll 8
    for (int first = 0; first < width; first += size) {
        Vec<T> some[size];
#pragma GCC unroll 4
        for (int i = 0; i < size; i++) some[i] = load_parts<T>(from + i * step + first, size * step);
#pragma GCC unroll 2
        for (int round = 1; round < size; round *= 2) {
            Vec<T> next[size];
#pragma GCC unroll 2
            for (int i = 0; i < size / 2; i++) {
                next[2 * i] = interleaved_parts<T, 0>(some[i], some[i + size / 2], all);
                next[2 * i + 1] = interleaved_parts<T, size / 2>(some[i], some[i + size / 2], all);
            }
#pragma GCC unroll 4
            for (int i = 0; i < size; i++) some[i] = next[i];
        }
#pragma GCC unroll 4
        for (int i = 0; i < size; i++) columns[first + i] = some[i];
    }
}

// Every second part of a and b in a row, the first or the second of each pair.
template <class T, int first, int... lane>
SCANLAB_INLINE Vec<T> every_second_part(Vec<T> a, Vec<T> b, Lanes<lane...>) {
    constexpr int size = part<T>;
    return __builtin_shufflevector(a, b, ((lane / size * 2 + first) * size + lane % size)...);
}

// Lane i of the result is the sum of the lanes of rows[i % count].
template <class T, int count>
SCANLAB_INLINE Vec<T> sums(const Vec<T>* rows) {
    constexpr int width = lanes<T>, size = part<T>, groups = count < size ? 1 : count / size;
    typename CountTo<width>::type all;
    Vec<T> groups_of[groups];  // first within the parts: the sums of `size` rows in each part
#pragma GCC unroll 8
    for (int group = 0; group < groups; group++) {
        Vec<T> some[size];
#pragma GCC unroll 4
        for (int i = 0; i < size; i++) some[i] = rows[group * size + i % count];
#pragma GCC unroll 2
        for (int half = size / 2; half > 0; half /= 2)
#pragma GCC unroll 2
            for (int i = 0; i < half; i++)
                some[i] = interleaved_parts<T, 0>(some[i], some[i + half], all) +
                          interleaved_parts<T, size / 2>(some[i], some[i + half], all);
        groups_of[group] = some[0];
    }
    int left = groups;  // then over the parts: the sums of pairs of parts
#pragma GCC unroll 2
    for (int parts = width / size; parts > 1; parts /= 2) {
        const int second = left > 1;
        left = (left + 1) / 2;
#pragma GCC unroll 4
        for (int i = 0; i < left; i++) {
            const Vec<T> a = groups_of[2 * i], b = groups_of[2 * i + second];
            groups_of[i] = every_second_part<T, 0>(a, b, all) + every_second_part<T, 1>(a, b, all);
        }
    }
    return groups_of[0];
}

// Element i from `to` on becomes the sum of the lanes of rows[i], added to its value if asked; at least one
// whole vector is written.
template <class T, int count>
SCANLAB_INLINE void sum_rows(const Vec<T> (&rows)[count], T* to, bool add) {
    constexpr int width = lanes<T>, each = count < width ? count : width;
#pragma GCC unroll 16
    for (int first = 0; first < count; first += each) {
        const Vec<T> total = sums<T, each>(rows + first);
        store<T>(to + first, add ? load(to + first) + total : total);
    }
}

}  // namespace scanlab::SCANLAB_TARGET
