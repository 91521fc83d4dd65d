// The library of a Mamba block's ops: the instruction set that they run on, and the fingerprint of weights.
#include "cpu/library.h"

#include <torch/library.h>

#include <atomic>

namespace scanlab::mixer {

#define SCANLAB_DECLARE(isa) extern const Kernels kernels_##isa;
SCANLAB_INSTRUCTION_SETS(SCANLAB_DECLARE)

namespace {

// The fastest last.
std::vector<const Kernels*> supported() {
    std::vector<const Kernels*> tables;
#define SCANLAB_TABLE(isa) \
    if (kernels_##isa.is_supported()) tables.push_back(&kernels_##isa);
    SCANLAB_INSTRUCTION_SETS(SCANLAB_TABLE)
    return tables;
}

std::atomic<const Kernels*> chosen{supported().back()};

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* table : supported()) names.emplace_back(table->name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const Kernels* table : supported())
        if (name == table->name) {
            chosen = table;
            return;
        }
    TORCH_CHECK_VALUE(false, name, ": this machine has ", at::ArrayRef<std::string>(instruction_sets()));
}

// A number that changes, but for a coincidence of 2^-64, with every weight that is another one or was changed in place.
int64_t fingerprint(const std::vector<Tensor>& weights) {
    // Where a few values lie, for changes that torch does not count: in rows and columns that differ.
    const auto each_sample = [](const Tensor& weight, const auto& act) {
        constexpr int sampled = 16;
        constexpr double golden = 0.6180339887498949;
        for (int sample = 1; sample <= sampled && weight.numel(); sample++) {
            int64_t index = int64_t((sample * golden - int(sample * golden)) * double(weight.numel())), offset = 0;
            for (int64_t axis = weight.dim() - 1; axis >= 0; axis--) {
                offset += index % weight.size(axis) * weight.stride(axis);
                index /= weight.size(axis);
            }
            act(static_cast<const char*>(weight.const_data_ptr()) + offset * weight.element_size());
        }
    };
    for (const Tensor& weight : weights) {
        expect_memory("a weight", weight);
        each_sample(weight,
                    [](const char* value) { __builtin_prefetch(value); });  // nothing else reads what was packed
    }
    uint64_t hash = 0;
    const auto add = [&](uint64_t value) {
        hash = (hash ^ value) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    };
    for (const Tensor& weight : weights) {
        add(reinterpret_cast<uintptr_t>(weight.const_data_ptr()));
        add(weight._version());
        add(uint64_t(weight.scalar_type()));
        for (const int64_t extent : weight.sizes()) add(extent);
        for (const int64_t stride : weight.strides()) add(stride);
        each_sample(weight, [&, bytes = weight.element_size()](const char* value) {
            uint64_t bits[2] = {};  // complex128 has as many
            memcpy(bits, value, bytes);
            add(bits[0]), add(bits[1]);
        });
    }
    return int64_t(hash);
}

}  // namespace

const Kernels& kernels_in_use() { return *chosen; }

const Products* products_in_use(at::ScalarType type) {
    const Kernels& kernels = kernels_in_use();
    if (type == at::kFloat) return &kernels.float32;
    if (type == at::kBFloat16 && kernels.bfloat16 && kernels.bfloat16->is_supported()) return kernels.bfloat16;
    return nullptr;
}

TORCH_LIBRARY(scanlab_mixer, library) {
    library.def("instruction_sets() -> str[]", &instruction_sets);
    library.def("use_instruction_set(str name) -> ()", &use_instruction_set);
    library.def("multiplies_bfloat16() -> bool", [] { return products_in_use(at::kBFloat16) != nullptr; });
    library.def("fingerprint(Tensor[] weights) -> int", &fingerprint);
}

}  // namespace scanlab::mixer
