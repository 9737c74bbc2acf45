// A profiler in place of Nsight Systems, for tests/nvtx.rs: it says on standard error which ranges begin and end.
//
// It takes the way of a real one: of the tables that it is given it asks for the slots of all modules, and writes its functions there.
#include <cstdint>
#include <cstdio>

using Slot = void*;

struct Callbacks {
    std::size_t bytes;
    int (*module_table)(int module, Slot*** slots, unsigned* size);
};

struct VersionInfo {
    std::size_t bytes;
    std::uint32_t version, reserved;
    void (*set_version)(std::uint32_t);
};

static int push(const char* name) { return std::fprintf(stderr, "begin %s\n", name); }
static int pop() { return std::fprintf(stderr, "end\n"); }
static int never() { return std::fprintf(stderr, "a function that nobody calls\n"); }

extern "C" int InitializeInjectionNvtx2(const void* (*export_table)(std::uint32_t)) {
    const auto* callbacks = static_cast<const Callbacks*>(export_table(1));
    const auto* info = static_cast<const VersionInfo*>(export_table(3));
    if (!callbacks || callbacks->bytes != sizeof(Callbacks) || !info || info->bytes != sizeof(VersionInfo)) return 0;
    if (info->version != 3 || export_table(2)) return 0;
    info->set_version(3);
    const unsigned sizes[] = {0, 16, 9, 15, 7, 16, 7};
    for (int module = 1; module < 7; ++module) {
        Slot** slots = nullptr;
        unsigned size = 0;
        if (!callbacks->module_table(module, &slots, &size) || size != sizes[module] || slots[0]) return 0;
        for (unsigned function = 1; function < size; ++function) *slots[function] = reinterpret_cast<Slot>(never);
        if (module != 1) continue;
        *slots[9] = reinterpret_cast<Slot>(push);
        *slots[11] = reinterpret_cast<Slot>(pop);
    }
    return 1;
}
