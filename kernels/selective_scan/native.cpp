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
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(cache_line)); }
};
using Memory = std::unique_ptr<char, Free>;

// Whole vectors of channels, as many as were asked for or begun.
int64_t channels_of_tile(const Scan& scan) {
    const int64_t lanes = kernels_of(scan).lanes;
    return (scan.channel_tile + lanes - 1) / lanes * lanes;
}

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

int64_t tiles(const Scan& scan) {
    const int64_t tile = channels_of_tile(scan);
    return (scan.dim / scan.groups + tile - 1) / tile;
}

int64_t blocks(const Scan& scan) { return (scan.length + scan.time_block - 1) / scan.time_block; }

namespace {

// Calls work(tile, memory) for every tile of every group and batch, `times` times over, on the scan's threads:
// each takes the next piece when it has finished one, so that a thread that is held up holds up no other.
template <class Work>
void for_tiles(const Scan& scan, int times, size_t memory_bytes, const Work& work) {
    const int64_t channels = scan.dim / scan.groups, tile = channels_of_tile(scan), each_group = tiles(scan);
    const int64_t each_time = scan.batch * scan.groups * each_group, count = each_time * times;
    const int threads = int(std::min<int64_t>(scan.threads, count));
    const size_t bytes = (memory_bytes + cache_line - 1) / cache_line * cache_line;
    const Memory memory(static_cast<char*>(::operator new(bytes * threads, std::align_val_t(cache_line))));
    std::atomic<int64_t> next{0};
    on_threads(threads, [&](int thread) {
        for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            const int64_t of_time = index % each_time, of_group = of_time % each_group, group = of_time / each_group % scan.groups;
            const int64_t first = of_group * tile;
            const Tile piece{of_time / each_group / scan.groups, group, group * channels + first, of_group,
                             int(std::min(tile, channels - first))};
            work(piece, int(index / each_time), memory.get() + bytes * thread);
        }
    });
}

}  // namespace

void run(const Scan& scan) {
    const Kernels& kernels = kernels_of(scan);
    for_tiles(scan, 1, kernels.workspace_bytes(scan),
              [&](const Tile& tile, int, void* memory) { kernels.forward(scan, tile, memory); });
}

void run_back(const Scan& scan, const Gradient& gradient) {
    const Kernels& kernels = kernels_of(scan);
    for_tiles(scan, scan.directions, kernels.workspace_back_bytes(scan),
              [&](const Tile& tile, int direction, void* memory) { kernels.back(scan, gradient, tile, direction, memory); });
}

}  // namespace scanlab
