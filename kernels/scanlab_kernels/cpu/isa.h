// The instruction sets of a family of processors, and the test of whether a machine has the features of a unit.
//
// isa.py has the one list of them: each unit is compiled with the flags of its set and with the macro
// SCANLAB_TARGET_NEEDS, the conjunction of the tests below for the same features.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__AMX_TILE__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace scanlab {

// In this order, each includes those before it. AMX is none of them: it has products in bfloat16 alone (library.cpp).
#if defined(__x86_64__)
#define SCANLAB_INSTRUCTION_SETS(call) call(plain) call(avx2) call(avx512)
#elif defined(__aarch64__)
#define SCANLAB_INSTRUCTION_SETS(call) call(plain) call(neon)
#else
#define SCANLAB_INSTRUCTION_SETS(call) call(plain)
#endif

#define SCANLAB_ENUMERATOR(name) name,
enum class Isa { SCANLAB_INSTRUCTION_SETS(SCANLAB_ENUMERATOR) };
#undef SCANLAB_ENUMERATOR

#if defined(SCANLAB_TARGET_NEEDS)
namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports of Clang has no name for F16C.
[[maybe_unused]] bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#define SCANLAB_HAS_f16c has_f16c()
#define SCANLAB_HAS_avx2 __builtin_cpu_supports("avx2")
#define SCANLAB_HAS_fma __builtin_cpu_supports("fma")
#define SCANLAB_HAS_avx512f __builtin_cpu_supports("avx512f")
#define SCANLAB_HAS_avx512dq __builtin_cpu_supports("avx512dq")
#define SCANLAB_HAS_avx512bw __builtin_cpu_supports("avx512bw")
#define SCANLAB_HAS_avx512vl __builtin_cpu_supports("avx512vl")
#define SCANLAB_HAS_avx512bf16 __builtin_cpu_supports("avx512bf16")

// The processor's flag is not enough: on Linux a process may use the tile registers only after it has asked for them.
[[maybe_unused]] bool has_amx_tile() {
#if defined(__AMX_TILE__) && defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
[[maybe_unused]] bool has_amx_bf16() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}
#define SCANLAB_HAS_amx_tile has_amx_tile()
#define SCANLAB_HAS_amx_bf16 has_amx_bf16()
#endif

// Returns whether this machine has the instructions that this unit was compiled for. Asks once: in a virtual machine
// CPUID traps to the hypervisor, which takes longer than a small scan.
[[maybe_unused]] bool is_supported() {
    static const bool supported = [] {
#if defined(__x86_64__)
        __builtin_cpu_init();
#endif
        return SCANLAB_TARGET_NEEDS;
    }();
    return supported;
}

}  // namespace
#endif

}  // namespace scanlab
