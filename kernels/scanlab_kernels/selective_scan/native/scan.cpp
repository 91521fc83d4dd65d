// How a scan is cut into tiles and spread over threads.
#include "selective_scan/native/scan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "cpu/threads.h"

namespace scanlab {

#define SCANLAB_DECLARE(isa) extern const Kernels kernels_##isa##_float, kernels_##isa##_double;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE)

namespace {
// In the order of Isa.
#define SCANLAB_TABLES(isa) {&kernels_##isa##_float, &kernels_##isa##_double},
constexpr const Kernels* tables[][2] = {SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLES)};
}  // namespace

Isa best_isa() {
    for (int isa = int(std::size(tables)) - 1; isa > 0; isa--)
        if (tables[isa][0]->is_supported()) return Isa(isa);
    return Isa::plain;
}

namespace {

const Kernels& kernels_of(const Scan& scan) { return *tables[int(scan.isa)][scan.type == Type::float64]; }

constexpr size_t cache_line = 64;

struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(cache_line)); }
};
using Memory = std::unique_ptr<char, Free>;

size_t item_bytes(const Scan& scan) { return scan.type == Type::float64 ? sizeof(double) : sizeof(float); }

// Whole vectors of channels, as many as were asked for or begun.
int64_t channels_of_tile(const Scan& scan) {
    const int64_t lanes = kernels_of(scan).lanes;
    return (scan.channel_tile + lanes - 1) / lanes * lanes;
}

}  // namespace

int64_t tiles(const Scan& scan) {
    const int64_t tile = channels_of_tile(scan);
    return (scan.dim / scan.groups + tile - 1) / tile;
}

int64_t blocks(const Scan& scan) { return (scan.length + scan.time_block - 1) / scan.time_block; }

namespace {

Memory allocate(size_t bytes) {
    return Memory(static_cast<char*>(::operator new(bytes, std::align_val_t(cache_line))));
}

// Memory that grows with the length of a sequence is kept up to this size.
constexpr size_t max_kept_bytes = 4 << 20;

// Memory of a thread, kept for its next call: returning it would cost page faults in every call.
class ScratchBuffer {
public:
    char* at_least(size_t bytes) {
        if (size < bytes) {
            memory = allocate(bytes);
            size = bytes;
        }
        return memory.get();
    }

private:
    Memory memory;
    size_t size = 0;
};

char* workspace(size_t bytes) {
    thread_local ScratchBuffer kept;
    return kept.at_least(bytes);
}

int64_t all_tiles(const Scan& scan) { return scan.batch * scan.groups * tiles(scan); }

Tile tile_at(const Scan& scan, int64_t number) {
    const int64_t channels = scan.dim / scan.groups, tile = channels_of_tile(scan), each_group = tiles(scan);
    const int64_t index = number % each_group, group = number / each_group % scan.groups, first = index * tile;
    return {number / each_group / scan.groups, group, group * channels + first, index,
            int(std::min(tile, channels - first))};
}

// Calls work(piece, memory) for `pieces` pieces on the scan's threads. Each begins with a share of its own, the
// channels that it had before the scan too, and then takes from the others' shares, so that a thread that is held up
// holds up no other.
template <class Work>
void for_pieces(const Scan& scan, int64_t pieces, size_t workspace_bytes, const Work& work) {
    const int64_t threads = std::min<int64_t>(scan.threads, pieces);
    const auto begin = [&](int64_t share) { return share * pieces / threads; };
    std::vector<std::atomic<int64_t>> next(threads);
    for (int64_t share = 0; share < threads; share++) next[share] = begin(share);
    on_threads(int(threads), [&](int thread) {
        char* const memory = workspace(workspace_bytes);
        for (int64_t offset = 0; offset < threads; offset++) {
            const int64_t share = (thread + offset) % threads;
            for (int64_t piece; (piece = next[share].fetch_add(1, std::memory_order_relaxed)) < begin(share + 1);)
                work(piece, memory);
        }
    });
}

// Chunks of time at once. A chunk does not know the state before it, so the first round starts all but the first
// from zero; further rounds scan a chunk again from the state that the one before it ended with, until that
// changes no more. A scan that forgets its past meets its first round after a few blocks. The result is that of
// the scan in one go, bit for bit, because every block was last computed from the state that precedes it.
void run_in_chunks(const Scan& scan, const Kernels& kernels) {
    const int64_t block_count = blocks(scan), blocks_each = (block_count + scan.time_chunks - 1) / scan.time_chunks;
    const int64_t chunks = (block_count + blocks_each - 1) / blocks_each, count = all_tiles(scan);
    const size_t state_bytes = channels_of_tile(scan) * scan.state * item_bytes(scan) * (scan.complex ? 2 : 1);
    const size_t borders_bytes = count * chunks * state_bytes;
    const size_t bytes = 2 * borders_bytes + count * block_count * state_bytes;
    thread_local ScratchBuffer kept;
    const Memory large = bytes > max_kept_bytes ? allocate(bytes) : nullptr;
    char* const start = large ? large.get() : kept.at_least(bytes);
    char *const end_states = start + borders_bytes, *const trace = end_states + borders_bytes;
    std::memset(start, 0, 2 * borders_bytes);
    std::vector<char> stale(count * chunks, 1);
    for (bool again = false;; again = true) {
        for_pieces(scan, count * chunks, kernels.workspace_bytes(scan), [&](int64_t piece, void* memory) {
            if (!stale[piece]) return;
            const int64_t tile = piece / chunks, index = piece % chunks, begin = index * blocks_each * scan.time_block;
            Chunk chunk{begin, std::min(begin + blocks_each * scan.time_block, scan.length)};
            chunk.end_state = end_states + piece * state_bytes;
            if (index) {
                chunk.start_state = start + piece * state_bytes, chunk.trace = trace + tile * block_count * state_bytes;
                chunk.again = again;
            }
            kernels.forward(scan, tile_at(scan, tile), chunk, memory);
        });
        bool settled = true;
        for (int64_t piece = 0; piece < count * chunks; piece++) {
            stale[piece] = false;
            if (piece % chunks == 0) continue;
            char *from = start + piece * state_bytes, *before = end_states + (piece - 1) * state_bytes;
            if (std::memcmp(from, before, state_bytes) == 0) continue;
            stale[piece] = true;
            std::memcpy(from, before, state_bytes);
            settled = false;
        }
        if (settled) return;
    }
}

}  // namespace

void run(const Scan& scan) {
    const Kernels& kernels = kernels_of(scan);
    if (scan.time_chunks > 1 && blocks(scan) > 1) return run_in_chunks(scan, kernels);
    for_pieces(scan, all_tiles(scan), kernels.workspace_bytes(scan), [&](int64_t piece, void* memory) {
        kernels.forward(scan, tile_at(scan, piece), {0, scan.length}, memory);
    });
}

namespace {

int64_t updates(const Scan& scan) { return scan.directions * scan.batch * scan.dim * scan.length * scan.state; }

// Nanoseconds of one thread for one state of one step, by the fastest of a few scans of zeros.
double ns_per_update(const Scan& like) {
    constexpr int64_t dim = 64, length = 256, state = 16;
    constexpr int tries = 5;
    // Doubles suffice for the largest type, two for each number of a complex one.
    const std::vector<double> channels(dim * length), weights(2 * dim * state), projection(2 * state * length);
    std::vector<double> out(dim * length), last(2 * dim * state);
    Scan scan;
    scan.batch = 1, scan.dim = dim, scan.length = length, scan.state = state;
    scan.type = like.type, scan.complex = like.complex, scan.isa = like.isa, scan.softplus = true;
    scan.channel_tile = dim;
    Direction& direction = scan.direction[0];
    direction.u = direction.delta = {const_cast<double*>(channels.data()), 0, length, 1};
    direction.A = {weights.data(), state, 1};
    direction.B = direction.C = {projection.data(), false, 0, 0, 0, like.complex ? 2 * length : length, 1};
    direction.last = {last.data(), 0, state, 1};
    scan.out = {out.data(), 0, length, 1};
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int attempt = 0; attempt < tries; attempt++) {
        const int64_t begun = Contention::now();
        run(scan);
        least = std::min(least, Contention::now() - begun);
    }
    return double(least) / updates(scan);
}

}  // namespace

double work_ns(const Scan& scan) {
    static std::atomic<double> known[2][2];
    std::atomic<double>& each = known[scan.type == Type::float64][scan.complex];
    if (each == 0) each = ns_per_update(scan);
    return each * updates(scan);
}

int64_t threads_worth(const Scan& scan) {
    constexpr int64_t share = 10;
    return std::max<int64_t>(1, int64_t(work_ns(scan) / double(share * handover_ns())));
}

namespace {

// A gradient that is the sum of several terms, each of `size` numbers.
struct Sum {
    void** place;
    int64_t terms, size;
    void *total = nullptr, *first = nullptr;
};

std::vector<Sum> sums_of(const Scan& scan, Gradient& gradient) {
    const int64_t parts = scan.complex ? 2 : 1, weights = scan.dim * scan.state * parts;
    const int64_t varying = scan.batch * scan.groups * scan.length * scan.state * parts;
    std::vector<Sum> sums;
    for (int d = 0; d < scan.directions; d++) {
        const Direction& of = scan.direction[d];
        DirectionGradient& to = gradient.direction[d];
        const auto projection = [&](const Projection& tensor, void** place) {
            return tensor.constant ? Sum{place, scan.batch, weights} : Sum{place, tiles(scan), varying};
        };
        for (const Sum& sum :
             {Sum{&to.A, scan.batch, weights}, Sum{&to.D, scan.batch, scan.dim},
              Sum{&to.delta_bias, scan.batch, scan.dim}, projection(of.B, &to.B), projection(of.C, &to.C)})
            if (sum.terms > 1) sums.push_back(sum);
    }
    return sums;
}

// Elements `begin` to `end` of a sum, from its first term to its last.
template <class T>
void add_up(const Sum& sum, int64_t begin, int64_t end) {
    T* __restrict total = static_cast<T*>(sum.total);
    const T* __restrict term = static_cast<const T*>(sum.first);
    std::copy(term + begin, term + end, total + begin);
    for (int64_t i = 1; i < sum.terms; i++) {
        term += sum.size;
        for (int64_t at = begin; at < end; at++) total[at] += term[at];
    }
}

}  // namespace

size_t terms_bytes(const Scan& scan) {
    Gradient gradient;
    size_t bytes = 0;
    for (const Sum& sum : sums_of(scan, gradient)) bytes += sum.terms * sum.size * item_bytes(scan);
    return bytes;
}

void run_backward(const Scan& scan, const Gradient& gradient) {
    Gradient apart = gradient;
    std::vector<Sum> sums = sums_of(scan, apart);
    char* free = static_cast<char*>(gradient.terms);
    for (Sum& sum : sums) {
        sum.total = *sum.place;
        if (sum.total) *sum.place = sum.first = free;
        free += sum.terms * sum.size * item_bytes(scan);
    }
    const Kernels& kernels = kernels_of(scan);
    const int64_t count = all_tiles(scan);
    for_pieces(scan, count * scan.directions, kernels.workspace_backward_bytes(scan), [&](int64_t piece, void* memory) {
        kernels.backward(scan, apart, tile_at(scan, piece % count), int(piece / count), memory);
    });

    constexpr int64_t sum_piece = 4096;  // numbers, whose total stays close while term after term is added
    std::vector<std::pair<const Sum*, int64_t>> pieces;
    for (const Sum& sum : sums)
        for (int64_t begin = 0; sum.total && begin < sum.size; begin += sum_piece) pieces.emplace_back(&sum, begin);
    if (pieces.empty()) return;
    for_pieces(scan, pieces.size(), 0, [&](int64_t piece, void*) {
        const auto [sum, begin] = pieces[piece];
        (scan.type == Type::float64 ? add_up<double> : add_up<float>)(*sum, begin,
                                                                      std::min(begin + sum_piece, sum->size));
    });
}

}  // namespace scanlab
