// Work on several threads, without torch.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <limits>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/denormals.h"

namespace scanlab {

// OpenMP's threads do not survive a fork: a child that asked for them would wait for ever.
inline std::atomic<bool> forked{false};
// Says that this process is the child of a fork, for forks before this library was loaded: it notices later ones
// itself.
inline void note_fork() { forked = true; }
inline const int fork_watch = pthread_atfork(nullptr, nullptr, note_fork);

struct JoinedThreads {
    std::vector<std::thread> threads;
    ~JoinedThreads() {
        for (std::thread& thread : threads) thread.join();
    }
};

// Whether the caller should work alone, because other processes take the CPUs of its threads.
//
// A parallel region ends when its last thread does. Where a neighbour keeps that thread from running, this is a quantum
// of the scheduler later, some milliseconds for work that takes tenths of one. Where regions cost more time than they
// save, the caller works alone for a while, and for longer where that happens again.
class Contention {
public:
    // Nanoseconds.
    static int64_t now() {
        const auto since = std::chrono::steady_clock::now().time_since_epoch();
        return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
    }

    bool alone(int64_t at) const { return at < until.load(order); }

    // Takes in a region that ended at `at` and took `region`, in which all threads worked for `total` and the one that
    // worked least for `least`. A thread that was held up seems to have worked for long.
    void note(int threads, int64_t region, int64_t total, int64_t least, int64_t at) {
        const int64_t by_one = std::min(total, std::max(threads * least, millisecond));
        const int64_t lost_now = std::max(lost.load(order) + region - by_one, -5 * millisecond);
        const bool holds_up = lost_now >= millisecond;
        lost.store(holds_up ? 0 : lost_now, order);
        if (!holds_up) return;
        const bool again = at - until.load(order) < 4 * pause.load(order);
        const int64_t longer = again ? std::min(2 * pause.load(order), longest) : shortest;
        pause.store(longer, order);
        until.store(at + longer, order);
    }

private:
    static constexpr auto order = std::memory_order_relaxed;
    static constexpr int64_t millisecond = 1'000'000;
    // No longer than timings wait for a quiet machine, so that clean samples are of all threads.
    static constexpr int64_t shortest = 20 * millisecond, longest = 160 * millisecond;
    // Time lost so far, negative where regions saved time.
    std::atomic<int64_t> lost{0}, until{0}, pause{shortest};
};
inline Contention contention;

// Nanoseconds of handing nothing to a second thread that is awake, and of waiting for its end: the least of a few
// tries. Threads that ask at the same moment measure at once: of one that others wait for a fork has no copy.
inline int64_t handover_ns() {
    static std::atomic<int64_t> known{0};
    int64_t shortest = known.load(std::memory_order_relaxed);
    if (shortest != 0) return shortest;
    shortest = std::numeric_limits<int64_t>::max();
    for (int attempt = 0; attempt < 64; attempt++) {
        const int64_t begun = Contention::now();
#if defined(_OPENMP)
        if (!forked) {
#pragma omp parallel num_threads(2)
            std::atomic_signal_fence(std::memory_order_seq_cst);
        } else
#endif
            std::thread([] {}).join();
        shortest = std::min(shortest, Contention::now() - begun);
    }
    shortest = std::max<int64_t>(shortest, 1);
    known.store(shortest, std::memory_order_relaxed);
    return shortest;
}

// Waits until `arrived` is `others`, for a while. A thread that was woken may wait for the CPU of the caller, which
// would keep it by waiting busily.
inline void yield_to(const std::atomic<int>& arrived, int others) {
    constexpr int64_t busily = 20'000, longest = 2'000'000;
    const int64_t begun = Contention::now();
    while (arrived.load(std::memory_order_relaxed) < others) {
        const int64_t waited = Contention::now() - begun;
        if (waited > longest) return;
        if (waited > busily) std::this_thread::yield();
    }
}

// Calls work(thread) once for each of `threads` threads with denormals flushed: on as many threads, the caller's among
// them, or where they are held up on the caller's alone. No call may wait for another. Raises what the first of them
// raised.
template <class Work>
void on_threads(int threads, const Work& work) {
    std::atomic_flag failed;
    std::exception_ptr failure;
    const auto guarded = [&](int thread) {
        try {
            const FlushDenormals flush;
            work(thread);
        } catch (...) {
            if (!failed.test_and_set()) failure = std::current_exception();
        }
    };
    const auto run_all = [&] {
        if (threads == 1) return guarded(0);
#if defined(_OPENMP)
        if (!forked) {
            const int64_t begun = Contention::now();
            if (contention.alone(begun)) {
                for (int thread = 0; thread < threads; thread++) guarded(thread);
                return;
            }
            int64_t total = 0, least = std::numeric_limits<int64_t>::max();
            std::vector<std::atomic<bool>> taken(threads);
            std::atomic<int> arrived{0};
#pragma omp parallel num_threads(threads) reduction(+ : total) reduction(min : least)
            {
                const int own = omp_get_thread_num(), others = omp_get_num_threads() - 1;
                for (int step = 0; step < threads; step++) {
                    const int thread = (own + step) % threads;
                    if (taken[thread].exchange(true, std::memory_order_relaxed)) continue;
                    const int64_t started = Contention::now();
                    guarded(thread);
                    const int64_t worked = Contention::now() - started;
                    total += worked, least = std::min(least, worked);
                }
                if (own != 0) {
                    arrived.fetch_add(1, std::memory_order_relaxed);
                } else {
                    yield_to(arrived, others);
                }
            }
            const int64_t ended = Contention::now();
            contention.note(threads, ended - begun, total, least, ended);
            return;
        }
#endif
        JoinedThreads others;
        for (int thread = 1; thread < threads; thread++) others.threads.emplace_back(guarded, thread);
        guarded(0);
    };
    run_all();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace scanlab
