// Vectors of one instruction set: loads and stores of every storage type, exp2, log1p, sigmoid, transposes.
//
// SCANLAB_ISA names the namespace, so that units compiled for different instruction sets share no symbol;
// only headers without inline functions of their own may be included here for the same reason.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "native.h"

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

#define SCANLAB_INLINE inline __attribute__((always_inline))

namespace scanlab::SCANLAB_ISA {

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

// NaN in x comes through both.
template <class T>
SCANLAB_INLINE Vec<T> at_least(Vec<T> x, T low) {
    return x < low ? broadcast(low) : x;
}
template <class T>
SCANLAB_INLINE Vec<T> at_most(Vec<T> x, T high) {
    return x > high ? broadcast(high) : x;
}
template <class T>
SCANLAB_INLINE Vec<T> absolute(Vec<T> x) {
    using I = typename Integer<T>::type;
    return bits_as<Vec<T>>(bits_as<IntVec<T>>(x) & ~(I(1) << (8 * sizeof(T) - 1)));
}

// Storage types: a vector of T from lanes<T> adjacent elements, and back, rounding to nearest even.
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

template <class T>
SCANLAB_INLINE Vec<T> load(const bfloat16* from) {
    Half half;
    memcpy(&half, from, sizeof(half));
    return bits_as<Vec<float>>(__builtin_convertvector(half, Word) << 16);
}
template <class T>
SCANLAB_INLINE void store(bfloat16* to, Vec<T> value) {
    Word bits = bits_as<Word>(value);
    Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Word quiet = (bits >> 16) | 0x40;
    Half half = __builtin_convertvector(value == value ? rounded : quiet, Half);
    memcpy(to, &half, sizeof(half));
}

template <class T>
SCANLAB_INLINE Vec<T> load(const float16* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Half half;
    memcpy(&half, from, sizeof(half));
    Word word = __builtin_convertvector(half, Word), sign = (word & 0x8000) << 16, rest = (word & 0x7fff) << 13;
    // Multiplying moves the exponent bias and makes subnormals normal; infinity and NaN lie above.
    Word finite = bits_as<Word>(bits_as<Vec<float>>(rest) * 0x1p112f);
    return bits_as<Vec<float>>(sign | ((word & 0x7fff) >= 0x7c00 ? (rest | 0x7f800000) : finite));
#endif
}
template <class T>
SCANLAB_INLINE void store(float16* to, Vec<T> value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, 0));
#elif defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, 0));
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

// Several vectors that go through the same arithmetic side by side: alone, each would wait for its own results.
template <class T, int count>
struct Pack {
    Vec<T> of[count];
};
template <class T, int count, class Function>
SCANLAB_INLINE Pack<T, count> each(const Pack<T, count>& a, Function function) {
    Pack<T, count> result;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) result.of[i] = function(a.of[i]);
    return result;
}
template <class T, int count, class Function>
SCANLAB_INLINE Pack<T, count> each(const Pack<T, count>& a, const Pack<T, count>& b, Function function) {
    Pack<T, count> result;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) result.of[i] = function(a.of[i], b.of[i]);
    return result;
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator+(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x + y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator-(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x - y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator*(const Pack<T, count>& a, const Pack<T, count>& b) {
    return each(a, b, [](Vec<T> x, Vec<T> y) { return x * y; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator+(const Pack<T, count>& a, T b) {
    return each(a, [b](Vec<T> x) { return x + b; });
}
template <class T, int count>
SCANLAB_INLINE Pack<T, count> operator*(const Pack<T, count>& a, T b) {
    return each(a, [b](Vec<T> x) { return x * b; });
}

// c[0] + c[1] f + c[2] f^2 + ..., each further coefficient with one multiply-add.
template <class T, int count, int terms>
SCANLAB_INLINE Pack<T, count> polynomial(const Pack<T, count>& f, const T (&c)[terms]) {
    Pack<T, count> p = f * c[terms - 1] + c[terms - 2];
#pragma GCC unroll 16
    for (int k = terms - 3; k >= 0; k--) p = p * f + c[k];
    return p;
}

// Polynomials for (2^f - 1) / f on [-1/2, 1/2], so that the error of 2^f vanishes with f: a decay near 1 keeps
// its distance from 1. Relative errors of 2^f before rounding: fast 1.6e-7, float 4.5e-9, double 2e-17.
inline constexpr float exp2_fast[] = {0.69314706f, 0.24022369f, 0.055507038f, 0.009665354f, 0.0013255808f};
inline constexpr float exp2_float[] = {0.6931472f,   0.24022649f,   0.05550368f,
                                       0.009618401f, 0.0013387045f, 0.00015341799f};
inline constexpr double exp2_double[] = {
    0.69314718055994530942,  0.2402265069591009822,      0.055504108664821594339,  0.0096181291076068885273,
    0.001333355814641693531, 0.00015403530441736050155,  1.5252733829836118394e-5, 1.3215442587921689653e-6,
    1.0178062445845773521e-7, 7.0725859492692236999e-9, 4.4549605981865183938e-10};

#if defined(__AVX512F__)
// x - round(x 2^bits) / 2^bits, 0 for infinite x; and x 2^floor(k).
template <int bits>
SCANLAB_INLINE Vec<float> remainder(Vec<float> x) {
    return _mm512_reduce_ps(x, bits << 4 | 8);
}
template <int bits>
SCANLAB_INLINE Vec<double> remainder(Vec<double> x) {
    return _mm512_reduce_pd(x, bits << 4 | 8);
}
SCANLAB_INLINE Vec<float> scaled(Vec<float> x, Vec<float> k) { return _mm512_scalef_ps(x, k); }
SCANLAB_INLINE Vec<double> scaled(Vec<double> x, Vec<double> k) { return _mm512_scalef_pd(x, k); }
#endif

// 2^x for every x. Without scalef the exponent is written by integer arithmetic: below 2^-126 the result is
// 0, and infinity begins half an octave early.
template <class T, int count, int terms>
SCANLAB_INLINE Pack<T, count> exp2_polynomial(Pack<T, count> x, const T (&coefficients)[terms]) {
#if defined(__AVX512F__)
    const auto f = each(x, [](Vec<T> v) { return remainder<0>(v); });
    return each(polynomial(f, coefficients) * f + T(1), x - f, [](Vec<T> p, Vec<T> k) { return scaled(p, k); });
#else
    constexpr int mantissa = Integer<T>::mantissa_bits, bias = Integer<T>::bias;
    constexpr T magic = T(1.5) * (int64_t(1) << mantissa) + bias;  // adding it rounds, and biases the exponent
    x = each(x, [](Vec<T> v) { return at_most<T>(at_least<T>(v, T(-bias)), T(bias + 1)); });
    const auto shifted = x + magic;
    const auto f = x - (shifted + -magic);
    const auto power = each(shifted, [](Vec<T> v) { return bits_as<Vec<T>>(bits_as<IntVec<T>>(v) << mantissa); });
    return (polynomial(f, coefficients) * f + T(1)) * power;
#endif
}

// 2^x = 2^k T[j] 2^f with x = k + j / entries + f: a table, best in a register, saves terms of the polynomial.
// Relative errors before rounding: 16 entries 2.3e-9, 8 entries 2.8e-10.
template <int count>
SCANLAB_INLINE Pack<float, count> exp2_table(Pack<float, count> x) {
#if defined(__AVX512F__)
    constexpr float c[] = {0.6931472f, 0.24023354f, 0.055501826f};
    const auto f = each(x, [](Vec<float> v) { return remainder<4>(v); });
    const auto root = each(x - f, [](Vec<float> k) {
        const Vec<float> roots = {1.f,           1.0442737824f, 1.0905077327f, 1.1387886348f, 1.189207115f,  1.2418578121f,
                                  1.2968395547f, 1.3542555469f, 1.4142135624f, 1.4768261459f, 1.5422108254f, 1.6104903319f,
                                  1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f};
        const Vec<float> shifted = k + 0x1.8p19f;  // the last four bits count sixteenths
        return scaled(_mm512_permutexvar_ps(_mm512_castps_si512(shifted), roots), k);
    });
#else
    constexpr float c[] = {0.6931472f, 0.2402265f, 0.055507693f, 0.009617904f};
    constexpr float magic = 0x1.8p20f + 127;  // adding it rounds to eighths, and biases the exponent
    x = each(x, [](Vec<float> v) { return at_most<float>(at_least<float>(v, -127.f), 128.f); });
    const auto shifted = x + magic;
    const auto f = x - (shifted + -magic);
    const auto root = each(shifted, [](Vec<float> v) {
        const IntVec<float> index = bits_as<IntVec<float>>(v);
#if defined(__AVX2__)
        const Vec<float> roots = {1.f,           1.0905077327f, 1.189207115f,  1.2968395547f,
                                  1.4142135624f, 1.5422108254f, 1.6817928305f, 1.8340080864f};
        const Vec<float> root = _mm256_permutevar8x32_ps(roots, reinterpret_cast<__m256i>(index));
#else
        static constexpr float roots[] = {1.f,           1.0905077327f, 1.189207115f,  1.2968395547f,
                                          1.4142135624f, 1.5422108254f, 1.6817928305f, 1.8340080864f};
        Vec<float> root;
        for (int lane = 0; lane < lanes<float>; lane++) root[lane] = roots[index[lane] & 7];
#endif
        return root * bits_as<Vec<float>>((index >> 3) << 23);
    });
#endif
    return polynomial(f, c) * f * root + root;
}

// The variant of exp2 that a scan asked for; double has one.
template <Exp variant, class T, int count>
SCANLAB_INLINE Pack<T, count> exp2(const Pack<T, count>& x) {
    if constexpr (sizeof(T) == 8) {
        return exp2_polynomial(x, exp2_double);
    } else if constexpr (variant == Exp::fast) {
        return exp2_polynomial(x, exp2_fast);
    } else if constexpr (variant == Exp::table) {
        return exp2_table(x);
    } else {
        return exp2_polynomial(x, exp2_float);
    }
}
#if defined(__AVX512F__)
inline constexpr Exp best_exp = Exp::table;
#else
inline constexpr Exp best_exp = Exp::polynomial;
#endif

template <class T>
inline constexpr T log2_e = T(1.4426950408889634074);

// log(1 + e) for e in [0, 1]: in float e times a polynomial (relative error 6e-8), in double
// 2 atanh(s) = 2 s (1 + s^2/3 + ...) with s = e / (2 + e).
template <int count>
SCANLAB_INLINE Pack<float, count> log1p_unit(const Pack<float, count>& e) {
    constexpr float c[] = {0.99999994f, -0.49999094f, 0.33310285f,  -0.24769403f, 0.1880604f,
                           -0.1300231f, 0.07018988f,  -0.024433995f, 0.0039361375f};
    return polynomial(e, c) * e;
}
template <int count>
SCANLAB_INLINE Pack<double, count> log1p_unit(const Pack<double, count>& e) {
    constexpr double c[] = {1.0,
                            0.33333333333333341662, 0.1999999999999643338,   0.14285714286311463983,
                            0.11111111059551837201, 0.090909117112476262459, 0.076922235302299837772,
                            0.066684384078719176769, 0.058576373340552126418, 0.054883083189737470326,
                            0.034901952491662160103, 0.082441429656947843109};
    const auto s = each(e, [](Vec<double> v) { return v / (2.0 + v); });
    return polynomial(s * s, c) * (s + s);
}

// log(1 + exp(x)); linear above 20, where upstream leaves the logarithm out (in float it rounds away).
template <class T, int count>
SCANLAB_INLINE Pack<T, count> softplus(const Pack<T, count>& x) {
    const auto tail = log1p_unit(exp2<best_exp>(each(x, [](Vec<T> v) { return absolute<T>(v); }) * -log2_e<T>));
    return each(x, tail, [](Vec<T> v, Vec<T> rest) {
        if constexpr (sizeof(T) == 8) rest = v > T(20) ? Vec<T>{} : rest;
        return at_least<T>(v, T(0)) + rest;
    });
}

// 1 / (1 + exp(-x)).
template <class T, int count>
SCANLAB_INLINE Pack<T, count> sigmoid(const Pack<T, count>& x) {
    const auto exponent = each(x * -log2_e<T>, [](Vec<T> v) { return at_most<T>(v, T(Integer<T>::bias - 1)); });
    return each(exp2<best_exp>(exponent) + T(1), [](Vec<T> q) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4) {
            const Vec<T> r = _mm512_rcp14_ps(q);
            return r * (T(2) - q * r);  // one Newton step: 14 bits become 28
        } else
#endif
            return T(1) / q;
    });
}

template <int... lane>
struct Lanes {};
template <int count, int... lane>
struct CountTo : CountTo<count - 1, count - 1, lane...> {};
template <int... lane>
struct CountTo<0, lane...> {
    typedef Lanes<lane...> type;
};

template <int from, class V, int... lane>
SCANLAB_INLINE V interleaved(V a, V b, Lanes<lane...>) {
    constexpr int width = sizeof...(lane);
    return __builtin_shufflevector(a, b, (lane % 2 * width + from + lane / 2)...);
}

// Rows of a square become its columns: log2(lanes) rounds of interleaving a row with the one half a square below.
template <class T>
SCANLAB_INLINE void transpose(Vec<T> (&rows)[lanes<T>]) {
    constexpr int width = lanes<T>;
    typename CountTo<width>::type all;
#pragma GCC unroll 4
    for (int round = 1; round < width; round *= 2) {
        Vec<T> next[width];
#pragma GCC unroll 16
        for (int i = 0; i < width / 2; i++) {
            next[2 * i] = interleaved<0>(rows[i], rows[i + width / 2], all);
            next[2 * i + 1] = interleaved<width / 2>(rows[i], rows[i + width / 2], all);
        }
#pragma GCC unroll 16
        for (int i = 0; i < width; i++) rows[i] = next[i];
    }
}

}  // namespace scanlab::SCANLAB_ISA
