// Ops of the library as a whole: the choice of the instruction set, and the fingerprint of weights.
#include "cpu/library.h"

#include <atomic>
#include <cstring>
#include <string>
#include <utility>

namespace scanlab::mixer {

#define SCANLAB_DECLARE(isa) extern const Kernels kernels_##isa;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE)

#if defined(__x86_64__)
extern const Products products_avx512_bfloat16, products_amx;
#endif

namespace {

// In the order of Isa.
#define SCANLAB_TABLE(isa) &kernels_##isa,
constexpr const Kernels* tables[] = {SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLE)};

#if defined(__x86_64__)
bool has_tiles() { return products_amx.is_supported(); }
#else
bool has_tiles() { return false; }
#endif

// A bit for each instruction set that this machine has.
int64_t instruction_sets() {
    int64_t bits = 0;
    for (size_t isa = 0; isa < std::size(tables); isa++) bits |= int64_t(tables[isa]->is_supported()) << isa;
    return bits;
}

const Kernels* best() {
    const Kernels* found = nullptr;
    for (const Kernels* table : tables)
        if (table->is_supported()) found = table;
    return found;
}

std::atomic<const Kernels*> chosen{best()};
std::atomic<bool> takes_tiles{false};  // a process asks the system for them only where they are to be used

// With `tiles`, products in bfloat16 run on AMX; everything else runs on `isa`.
void use_instruction_set(int64_t isa, bool tiles) {
    require(isa >= 0 && isa < int64_t(std::size(tables)) && tables[isa]->is_supported() && (!tiles || has_tiles()),
            "instruction set ", isa, tiles ? " with AMX" : "", ": this machine lacks it");
    chosen = tables[isa];
    takes_tiles = tiles;
}

// A hash of weights: of the address and layout of each, and of a sample of its values, which shows changes that torch
// does not count. The sampled values lie in different rows and columns.
class Fingerprint {
public:
    explicit Fingerprint(int64_t seed) : hash(uint64_t(seed)) {}

    // Nothing else reads a weight whose packed form is in use, so its samples are in no cache.
    static void prefetch(const Tensor& weight) {
        each_sample(weight, [](const char* value) { __builtin_prefetch(value); });
    }
    void add(const Tensor& weight) {
        add(reinterpret_cast<uintptr_t>(weight.data()));
        add(uint64_t(weight.dtype_number()));
        for (const int64_t extent : weight.sizes()) add(uint64_t(extent));
        for (const int64_t stride : weight.strides()) add(uint64_t(stride));
        each_sample(weight, [&, bytes = weight.element_size()](const char* value) {
            uint64_t bits[2] = {};  // enough for complex128, the widest dtype
            memcpy(bits, value, bytes);
            add(bits[0]), add(bits[1]);
        });
    }
    int64_t value() const { return int64_t(hash); }

private:
    uint64_t hash;

    void add(uint64_t value) {
        hash = (hash ^ value) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    }
    template <class Act>
    static void each_sample(const Tensor& weight, const Act& act) {
        constexpr int sampled = 6;
        constexpr double golden = 0.6180339887498949;
        const Shape sizes = weight.sizes(), strides = weight.strides();
        const int64_t count = weight.numel(), bytes = int64_t(weight.element_size());
        const char* const first = weight.data<char>();
        for (int sample = 1; sample <= sampled && count; sample++) {
            // Even and odd in turn, so that a change of every second column shows.
            int64_t index = (int64_t((sample * golden - int(sample * golden)) * double(count)) + sample % 2) % count;
            int64_t offset = 0;
            for (size_t axis = sizes.size(); axis-- > 0; index /= sizes[axis])
                offset += index % sizes[axis] * strides[axis];
            act(first + offset * bytes);
        }
    }
};

constexpr size_t max_weights = 16;  // that `fingerprint` takes; MAX_TOGETHER in weight_cache.py
template <size_t>
using Weight = OptionalTensor;

// A number that differs, except by a coincidence of 2^-64, where a weight was replaced, or was changed in place and
// torch counted the change or a sample shows it. `seed` stands for the weights before these and for torch's counts.
template <class... Weights>
int64_t fingerprint(int64_t seed, const Weights&... given) {
    const Tensor* const weights[] = {&given...};
    for (const Tensor* weight : weights)
        if (*weight) {
            expect_memory("a weight", *weight);
            Fingerprint::prefetch(*weight);
        }
    Fingerprint hash(seed);
    for (const Tensor* weight : weights)
        if (*weight) hash.add(*weight);
    return hash.value();
}
template <size_t... weight>
constexpr auto fingerprint_of(std::index_sequence<weight...>) {
    return &fingerprint<Weight<weight>...>;
}

}  // namespace

const Kernels& kernels_in_use() { return *chosen; }

const Products* products_in_use(Dtype dtype) {
    const Kernels& kernels = kernels_in_use();
    if (dtype == Dtype::float32) return &kernels.float32;
#if defined(__x86_64__)
    if (dtype == Dtype::bfloat16 && kernels.multiplies_bfloat16) {
        if (takes_tiles) return &products_amx;
        if (products_avx512_bfloat16.is_supported()) return &products_avx512_bfloat16;
    }
#endif
    return nullptr;
}

SCANLAB_OPS(scanlab_mixer, library) {
    library.define("instruction_sets() -> int");
    library.define("use_instruction_set(int isa, bool tiles) -> ()");
    library.define("has_tiles() -> bool");
    library.define("note_fork() -> ()");
    std::string weights;
    for (size_t weight = 0; weight < max_weights; weight++) weights += ", Tensor? w" + std::to_string(weight) + "=None";
    library.define("fingerprint(int seed" + weights + ") -> int");
}

SCANLAB_KERNELS(scanlab_mixer, CompositeExplicitAutograd, library) {
    library.implement("instruction_sets", boxed<instruction_sets>);
    library.implement("use_instruction_set", boxed<use_instruction_set>);
    library.implement("has_tiles", boxed<has_tiles>);
    library.implement("note_fork", boxed<note_fork>);
    library.implement("fingerprint", boxed<fingerprint_of(std::make_index_sequence<max_weights>())>);
}

}  // namespace scanlab::mixer
