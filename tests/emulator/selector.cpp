// The selector kernels for the emulator: reads a memory and launches, runs them, and writes the memory.
//
//     selector JOB MEMORY SEED
//
// JOB: u64 address and u64 size of the memory, its bytes, u32 number of launches; for each of them a name of 32 bytes, u32 blocks along x
// and y, threads and size of the parameters, and these. The memory is mapped at its address, so that parameters are what they would be on
// a GPU. MEMORY gets the memory as it is after all launches.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/ptx_sm80.cuh"

// Of the host's words some are the kernels' own.
#include "cuda.h"
#undef __align__
#define __align__(bytes) __attribute__((aligned(bytes)))

inline float __uint_as_float(u32 bits) { return emulator::float_of(bits); }
inline u32 __float_as_uint(float x) { return emulator::bits_of(x); }

#include "selector/arithmetic.cuh"
#include "selector/rank.cuh"

namespace pool {
#include "selector/pool.cu"
}
namespace vectors {
#include "selector/vectors.cu"
}
namespace lines {
#include "selector/lines.cu"
}
namespace short_selections {
#include "selector/select.cu"
}
namespace long_selections {
#include "selector/select_long.cu"
}
namespace moves {
#include "selector/move.cu"
}
namespace packs {
#include "selector/pack.cu"
}

namespace {

const void* params;

// A kernel under its name.
struct Entry {
    const char* name;
    void (*run)();
};

#define ENTRY(space, kernel, Params) \
    {#kernel, [] { space::kernel(*static_cast<const Params*>(params)); }}

const Entry ENTRIES[] = {
    ENTRY(pool, selector_pool, PoolParams),
    ENTRY(pool, selector_centre, CentreParams),
    ENTRY(pool, selector_similarity, SimilarityParams),
    ENTRY(vectors, selector_each, EachParams),
    ENTRY(vectors, selector_dot, DotParams),
    ENTRY(vectors, selector_dot_small, DotParams),
    ENTRY(vectors, selector_vectors, VectorsParams),
    ENTRY(vectors, selector_over_channels, LinesParams),
    ENTRY(vectors, selector_scale, ScaleParams),
    ENTRY(lines, selector_softmax, LinesParams),
    ENTRY(lines, selector_share, LinesParams),
    ENTRY(lines, selector_reduce, LinesParams),
    ENTRY(short_selections, selector_select_1, SelectParams),
    ENTRY(short_selections, selector_select_2, SelectParams),
    ENTRY(short_selections, selector_select_3, SelectParams),
    ENTRY(short_selections, selector_select_5, SelectParams),
    ENTRY(short_selections, selector_select_9, SelectParams),
    ENTRY(short_selections, selector_select_17, SelectParams),
    ENTRY(short_selections, selector_select_32, SelectParams),
    ENTRY(long_selections, selector_select_long, SelectParams),
    ENTRY(moves, selector_move, MoveParams),
    ENTRY(moves, selector_transpose, TransposeParams),
    ENTRY(moves, selector_gather, GatherParams),
    ENTRY(moves, selector_diagonals, DiagonalsParams),
    ENTRY(moves, selector_on_diagonals, OnDiagonalsParams),
    ENTRY(moves, selector_group_sums, GroupSumsParams),
    ENTRY(packs, selector_pack, PackParams),
};

void read(std::FILE* file, void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, file) != bytes) emulator::fail("the job ends too early");
}

u32 number(std::FILE* file) {
    u32 value;
    read(file, &value, sizeof value);
    return value;
}

void run_one(std::FILE* job, emulator::Random& random) {
    char name[33] = {};
    read(job, name, 32);
    const u32 x = number(job), y = number(job), threads = number(job), size = number(job);
    alignas(16) static u8 bytes[4096];
    read(job, bytes, size);
    emulator::running_case = name;
    params = bytes;
    emulator::Schedule schedule;
    schedule.splits_warps = random.one_in(2);
    for (const Entry& entry : ENTRIES) {
        if (std::string(entry.name) != name) continue;
        emulator::Grid grid{x, threads, 0, false, true, y};
        emulator::launch(grid, schedule, random, entry.run);
        return;
    }
    emulator::fail("there is no kernel of this name");
}

} // namespace

int main(int arguments, char** values) {
    if (arguments != 4) {
        std::fprintf(stderr, "usage: %s JOB MEMORY SEED\n", values[0]);
        return 2;
    }
    std::FILE* job = std::fopen(values[1], "rb");
    if (job == nullptr) emulator::fail("the job cannot be read");
    u64 address, size;
    read(job, &address, sizeof address);
    read(job, &size, sizeof size);
    void* memory = mmap(reinterpret_cast<void*>(address), size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory != reinterpret_cast<void*>(address)) emulator::fail("the memory cannot be mapped at its address");
    read(job, memory, size);
    emulator::Random random(std::strtoull(values[3], nullptr, 10));
    for (u32 left = number(job); left > 0; --left) run_one(job, random);
    std::fclose(job);
    std::FILE* out = std::fopen(values[2], "wb");
    if (out == nullptr || std::fwrite(memory, 1, size, out) != size || std::fclose(out) != 0) emulator::fail("the memory cannot be written");
    return 0;
}
