// The pipeline of the portable projections (sm_80 and newer): cp.async, ldmatrix and mma.sync, and pieces of tiles that are joined.
//
// A tile of output is 128 rows, those of one q-block, by 128 columns; its reduction goes in loads of 32, two to a k-step. Who does what:
// a persistent grid of plan.ctas thread blocks of four warps, two to a multiprocessor, each with its share of tiles from work.cuh. All
// threads load and multiply; a warp has 64 x 64 of the tile, or 32 x 128 where the epilogue needs whole rows of a head. The loads of the
// next tile start before the epilogue of the last, which keeps to registers: quads of threads exchange their columns, so that each thread
// writes and reads 16 bytes. While one thread block is in its epilogue, the other one has the tensor cores.
//
// Divided tiles are joined by the last thread block to come, in the order of thread blocks. Nobody waits for anybody.
//
// | devices           | stages | shared memory     |
// |-------------------|--------|-------------------|
// | 8.6 to 8.9, 12.x  | 3      | 49 KiB (50,176)   |
// | all others        | 4      | 65 KiB (66,560)   |
//
// Memory plan: stages of [128][32] of either operand, 16,384 bytes; 1,024 bytes of control. Rows of 64 bytes are split into 16-byte chunks,
// and chunk c of row r lies at c ^ (r / 2 % 4), so that neither cp.async nor ldmatrix meet bank conflicts.
//
// `Kernel` says what is multiplied and what happens to it:
//   params                                    GemmParams
//   Detail, detail(batch, q_block, slot)      what a tile has beside its rows
//   WARP_COLUMNS                              of a warp, 64 or 128
//   Loader(kernel, tile, step).load(a, b)     the loads of a tile one after another, from a k-step on; this thread's part
//   has_column(tile, column)                  whether the columns of the tile from this one on are anything
//   finish(tile, place, d)                    the epilogue of a warp
#pragma once
#include "common/math.cuh"
#include "common/ptx.cuh"
#include "common/ptx_sm80.cuh"
#include "gemm/tile.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mma.sync of bf16 and cp.async need sm_80 or newer"
#endif
static_assert(TILE_COLUMNS == 128, "what the warps of a thread block share");

// The table above: two thread blocks within 100 KiB.
#if (__CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 900 && __CUDA_ARCH__ != 870) || __CUDA_ARCH__ >= 1200
constexpr u32 STAGES = 3;
#else
constexpr u32 STAGES = 4;
#endif
constexpr u32 THREADS = 128;
constexpr u32 BLOCKS_PER_SM = 2;

constexpr u32 LOAD = 32; // numbers of the reduction
constexpr u32 LOADS_PER_STEP = STEP / LOAD;
constexpr u32 ROW_BYTES = LOAD * 2;
constexpr u32 CHUNKS = ROW_BYTES / 16; // of a row
constexpr u32 ROWS_AT_ONCE = THREADS / CHUNKS;
constexpr u32 OPERAND_BYTES = BLOCK_Q * ROW_BYTES;
constexpr u32 STAGE_BYTES = 2 * OPERAND_BYTES;
constexpr u32 CONTROL_BYTES = 1024;
constexpr u32 SHARED_BYTES = STAGES * STAGE_BYTES + CONTROL_BYTES;
static_assert(SHARED_BYTES <= OMNI_SHARED_BYTES, "the shared memory that the host launches with");

static_assert(BLOCK_Q == TILE_COLUMNS, "both operands of a stage have as many rows");
static_assert(ROWS_AT_ONCE % 8 == 0, "rows of a thread share their swizzle");

__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) {
    return row * ROW_BYTES + ((chunk ^ (row / 2 % CHUNKS)) * 16);
}

// The first of this thread's rows of a load; the others are ROWS_AT_ONCE further each. And its chunk of them.
__device__ __forceinline__ u32 load_row() {
    return threadIdx.x / CHUNKS;
}
__device__ __forceinline__ u32 load_chunk() {
    return threadIdx.x % CHUNKS;
}

// Its chunks of COUNT rows, of which those from `rows` on become zeros; `from` is the first, and others lie `stride` bytes apart.
template <u32 COUNT>
__device__ __forceinline__ void load_rows(u32 to, const u8* from, u64 stride, u32 first, u32 rows) {
    u32 destination = to + first * ROW_BYTES + swizzled(load_row(), load_chunk());
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) {
        u32 bytes = first + load_row() + i * ROWS_AT_ONCE < rows ? 16 : 0;
        cp_async_cg_16(destination + i * ROWS_AT_ONCE * ROW_BYTES, from + i * stride, bytes);
    }
}

// The address of a number of a tensor.
__device__ __forceinline__ u8* address_in(const Tensor4& tensor, u32 batch, u32 head, u32 row, u32 column) {
    return static_cast<u8*>(tensor.data)
        + 2 * (batch * tensor.batch_stride + head * tensor.head_stride + row * tensor.token_stride + column);
}

// Shared by the thread block.
template <class Detail>
struct Control {
    Tile<Detail> tiles[2]; // the one whose loads have begun last, at `current`, and the one before
    u64 work[7];           // what thread 0 does next, a Work
    u32 current;
    u32 is_last; // this thread block was the last to finish a divided tile
};
static_assert(sizeof(Work) <= sizeof(Control<u32>::work), "room for the position in the work");

// Where the accumulators of a thread lie: d[m][n][2 r + c] is row `row` + 16 m + 8 r and column `column` + 8 n + 2 quad + c of the tile.
struct Place {
    u32 warp_row, column; // the first of the warp
    u32 row;
    u32 quad;

    template <u32 COLUMNS>
    static __device__ __forceinline__ Place of_thread() {
        constexpr u32 ROWS = 64 * 64 / COLUMNS;
        u32 thread = tid_x(), warp = thread / 32;
        u32 first = warp / (TILE_COLUMNS / COLUMNS) * ROWS;
        return Place{first, warp % (TILE_COLUMNS / COLUMNS) * COLUMNS, first + thread % 32 / 4, thread % 4};
    }
};

// ------------------------------------------------------------------------------------------------------------------- products

// d += a b^T over one stage. The address of a chunk differs from that of chunk 0 or 1 by an exclusive or.
template <u32 M_TILES, u32 N_TILES>
__device__ __forceinline__ void multiply(float (&d)[M_TILES][N_TILES][4], const Place& place, u32 stage) {
    u32 lane = threadIdx.x % 32;
    u32 a_address = stage + swizzled(place.warp_row + lane % 16, lane / 16);
    u32 b_address = stage + OPERAND_BYTES + swizzled(place.column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (u32 k = 0; k < LOAD / 16; ++k) {
        u32 a[M_TILES][4];
#pragma unroll
        for (u32 m = 0; m < M_TILES; ++m) ldmatrix_x4(a[m], (a_address ^ (k * 32)) + m * 16 * ROW_BYTES);
#pragma unroll
        for (u32 n = 0; n < N_TILES; n += 2) {
            u32 b[4];
            ldmatrix_x4(b, (b_address ^ (k * 32)) + n * 8 * ROW_BYTES);
#pragma unroll
            for (u32 m = 0; m < M_TILES; ++m) {
                mma_m16n8k16(d[m][n], a[m], b[0], b[1]);
                mma_m16n8k16(d[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// The loads of a tile: as many as its piece has, then none.
template <class Kernel>
struct Feed {
    typename Kernel::Loader loader;
    u32 left;

    template <class OwnTile>
    __device__ __forceinline__ Feed(const Kernel& kernel, const OwnTile& tile)
        : loader(kernel, tile, tile.piece.count == 0 ? 0 : first_step(tile.piece)),
          left(tile.piece.count == 0 ? 0 : count_steps(tile.piece) * LOADS_PER_STEP) {}

    __device__ __forceinline__ void load(u32 stage) {
        if (left > 0) {
            loader.load(stage, stage + OPERAND_BYTES);
            --left;
        }
        // A group for every load, even for none: waiting counts groups.
        cp_async_commit_group();
    }
};

// All loads of a piece. The first STAGES - 1 are under way.
template <class Kernel, u32 M_TILES, u32 N_TILES>
__device__ __forceinline__ void reduce(
    float (&d)[M_TILES][N_TILES][4], Feed<Kernel>& feed, u32 loads, const Place& place, bool has_columns, u32 stages) {
    u32 slot = 0;
#pragma unroll 1
    for (u32 load = 0; load < loads; ++load) {
        cp_async_wait_group<STAGES - 2>();
        __syncthreads();
        // The one before it, which the barrier has freed.
        feed.load(stages + (slot == 0 ? STAGES - 1 : slot - 1) * STAGE_BYTES);
        if (has_columns) multiply(d, place, stages + slot * STAGE_BYTES);
        slot = slot == STAGES - 1 ? 0 : slot + 1;
    }
}

// ------------------------------------------------------------------------------------------------------------- divided tiles

// Place of this thread in the workspace, [slot][i][thread][4].
__device__ __forceinline__ float4* partial_out(const Plan& plan, u32 slot) {
    return reinterpret_cast<float4*>(plan.partial_out) + u64(slot) * (BLOCK_Q * TILE_COLUMNS / 4) + threadIdx.x;
}

// Leaves a piece of a divided tile in the workspace. Whoever comes last has the whole tile: then this returns true.
template <class OwnControl, u32 M_TILES, u32 N_TILES>
__device__ __forceinline__ bool join(const Plan& plan, OwnControl& control, const Piece& piece, float (&d)[M_TILES][N_TILES][4]) {
    float4* to = partial_out(plan, piece.slot);
#pragma unroll
    for (u32 i = 0; i < M_TILES * N_TILES; ++i) {
        const float* x = d[i / N_TILES][i % N_TILES];
        __stcg(to + i * THREADS, make_float4(x[0], x[1], x[2], x[3]));
    }
    __threadfence(); // the piece comes before its arrival
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrived = plan.arrived + piece.first;
        control.is_last = atomicAdd(arrived, 1) == piece.pieces - 1;
        if (control.is_last) *arrived = 0; // for the next launch
        __threadfence(); // and those of the others before what follows
    }
    __syncthreads();
    if (!control.is_last) return false;
#pragma unroll
    for (u32 i = 0; i < M_TILES * N_TILES * 4; ++i) d[i / 4 / N_TILES][i / 4 % N_TILES][i % 4] = 0.0f;
#pragma unroll 1
    for (u32 block = piece.first; block <= piece.last; ++block) {
        // Between them there may be thread blocks without work.
        if (!is_before(load_cut(plan.cuts, block), load_cut(plan.cuts, block + 1))) continue;
        // Past the first-level cache: other multiprocessors have written it.
        const float4* from = partial_out(plan, slot_of(block, piece.first));
#pragma unroll
        for (u32 i = 0; i < M_TILES * N_TILES; ++i) {
            float4 part = __ldcg(from + i * THREADS);
            float* x = d[i / N_TILES][i % N_TILES];
            x[0] += part.x, x[1] += part.y, x[2] += part.z, x[3] += part.w;
        }
    }
    return true;
}

// --------------------------------------------------------------------------------------------------------------------- output

// The four threads of a quad have a word of each of four chunks, and get each one chunk. It is its own reverse.
__device__ __forceinline__ void transpose_quad(u32 (&words)[4], u32 quad) {
    auto exchange = [&](u32& a, u32& b, u32 distance) {
        bool is_upper = quad & distance;
        u32 sent = __shfl_xor_sync(0xFFFFFFFF, is_upper ? a : b, distance);
        (is_upper ? a : b) = sent;
    };
    exchange(words[0], words[1], 1);
    exchange(words[2], words[3], 1);
    exchange(words[0], words[2], 2);
    exchange(words[1], words[3], 2);
}

// Writes a row of 8 * N_TILES columns, of which `columns` are there, a multiple of 8; none where the row is not.
template <u32 N_TILES>
__device__ __forceinline__ void store_row(u8* row, const float (&x)[N_TILES][4], u32 r, u32 quad, u32 columns) {
#pragma unroll
    for (u32 n = 0; n < N_TILES; n += 4) {
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) words[i] = pack(x[n + i][2 * r], x[n + i][2 * r + 1]);
        transpose_quad(words, quad);
        u32 chunk = n + quad;
        if (8 * chunk < columns) *reinterpret_cast<uint4*>(row + 16 * chunk) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

// --------------------------------------------------------------------------------------------------------------------- kernel

template <class Kernel>
__device__ __forceinline__ void run(const Kernel& kernel, u8* shared) {
    constexpr u32 M_TILES = 64 * 64 / Kernel::WARP_COLUMNS / 16, N_TILES = Kernel::WARP_COLUMNS / 8;
    using OwnControl = Control<typename Kernel::Detail>;
    static_assert(sizeof(OwnControl) <= CONTROL_BYTES, "the memory plan above");
    OwnControl& control = *reinterpret_cast<OwnControl*>(shared + STAGES * STAGE_BYTES);
    u32 stages = shared_address(shared);
    const Plan& plan = kernel.params.plan;
    Place place = Place::of_thread<Kernel::WARP_COLUMNS>();
    if (threadIdx.x == 0) {
        const Work work(plan, blockIdx.x);
        memcpy(control.work, &work, sizeof(work));
        control.current = 0;
    }
    // Thread 0 fetches a piece for all, and all start its first loads.
    auto start = [&] {
        __syncthreads(); // all are done with the last piece, and so with its stages, and with the tile before it
        if (threadIdx.x == 0) {
            control.current ^= 1;
            auto& tile = control.tiles[control.current];
            if (reinterpret_cast<Work*>(control.work)->next(tile.piece)) {
                place_piece(kernel, tile);
            } else {
                tile.piece.count = 0;
            }
        }
        __syncthreads();
        Feed<Kernel> feed(kernel, control.tiles[control.current]);
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; ++stage) feed.load(stages + stage * STAGE_BYTES);
        return feed;
    };
    Feed<Kernel> feed = start();
    while (control.tiles[control.current].piece.count > 0) {
        const auto& tile = control.tiles[control.current];
        float d[M_TILES][N_TILES][4] = {};
        reduce(d, feed, count_steps(tile.piece) * LOADS_PER_STEP, place, kernel.has_column(tile, place.column), stages);
        feed = start();
        if (tile.piece.slot == WHOLE || join(plan, control, tile.piece, d)) kernel.finish(tile, place, d);
    }
}
