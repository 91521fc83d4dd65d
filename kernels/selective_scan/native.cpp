// How a scan is cut into tiles and spread over threads.
#include "native.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <vector>
#include <pthread.h>

namespace scanlab {

extern const Kernels kernels_plain_float, kernels_plain_double;
#if defined(__x86_64__)
extern const Kernels kernels_avx2_float, kernels_avx2_double, kernels_avx512_float, kernels_avx512_double;
#endif

Isa best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::plain;
}

namespace {

const Kernels& kernels_of(const Scan& scan) {
    const bool wide = scan.type == Type::float64;
#if defined(__x86_64__)
    if (scan.isa == Isa::avx512) return wide ? kernels_avx512_double : kernels_avx512_float;
    if (scan.isa == Isa::avx2) return wide ? kernels_avx2_double : kernels_avx2_float;
#endif
    return wide ? kernels_plain_double : kernels_plain_float;
}

constexpr size_t cache_line = 64;

struct Free {
    void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(cache_line)); }
};
using Memory = std::unique_ptr<void, Free>;

Memory allocate(size_t bytes) { return Memory(::operator new(bytes, std::align_val_t(cache_line))); }

// OpenMP's threads do not survive a fork: a child that asked for them would wait for ever.
std::atomic<bool> forked{false};
const int watching_forks = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// Calls work(thread) once on each of `threads` threads, the caller's among them.
template <class Work>
void on_threads(int threads, const Work& work) {
    if (threads == 1) return work(0);
#if defined(_OPENMP)
    if (!forked) {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int thread = 0; thread < threads; thread++) work(thread);
        return;
    }
#endif
    std::vector<std::thread> others;
    for (int thread = 1; thread < threads; thread++) others.emplace_back(work, thread);
    work(0);
    for (auto& other : others) other.join();
}

}  // namespace

void run(const Scan& scan) {
    const Kernels& kernels = kernels_of(scan);
    const int64_t channels = scan.dim / scan.groups;
    const int64_t tile = (scan.channel_tile + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
    const int64_t tiles = (channels + tile - 1) / tile;
    const int64_t count = scan.batch * scan.groups * tiles;
    const int threads = int(std::min<int64_t>(scan.threads, count));
    const size_t bytes = (kernels.workspace_bytes(scan) + cache_line - 1) / cache_line * cache_line;
    const Memory memory = allocate(bytes * threads);
    std::atomic<int64_t> next{0};
    on_threads(threads, [&](int thread) {
        void* workspace = static_cast<char*>(memory.get()) + bytes * thread;
        for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            const int64_t first = index % tiles * tile, group = index / tiles % scan.groups;
            const Tile piece{index / tiles / scan.groups, group, group * channels + first, int(std::min(tile, channels - first))};
            kernels.forward(scan, piece, workspace);
        }
    });
}

}  // namespace scanlab
