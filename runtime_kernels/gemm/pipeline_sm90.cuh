// The pipeline of the projections on Hopper (sm_90a): TMA, wgmma, specialised warps, and pieces of tiles that are joined.
//
// A tile of output is 128 rows, those of one q-block or of two small ones, by up to 256 columns; its reduction goes in k-steps of 64. Who does what, in one
// thread block of 384 threads per multiprocessor that stays for all of its work:
//   warpgroup 0, warp 0   producer: loads both operands of each k-step by TMA, then what others computed of a divided tile, and what the
//                         epilogue adds: all through one ring, so that it is there when the sums are done
//                warp 1   scheduler: finds out tiles ahead where they lie
//   warpgroup 1 and 2     consumers: 64 rows each, 64 x 256 accumulators
//
// Shared memory (bytes):
//   a       4 stages of [128][64]                  65,536   rows of a q-block; or 64 columns of what the epilogue adds
//   b       4 stages of [256][64]                 131,072   rows of the weight, which are columns of the output; or a part of a piece
//   staged  2 panels of [128][64]                  32,768   output on its way: half a tile at a time, which leaves by TMA while the other half,
//                                                           or the next sums, are made
//   barriers, tiles                               < 1,024
// Rows are 128 bytes, swizzled by 128 bytes as TMA and wgmma expect.
//
// A tile that is divided ends in the thread block that has its first piece, which is its last work.
//
// `Kernel` says what is multiplied and what happens to it:
//   params                                          GemmParams
//   Detail, detail(batch, q_block, slot)            what a tile has beside its rows
//   Loader(kernel, tile, step).load(a, b, barrier)  the k-steps of a tile one after another
//   additions(), load_addition(tile, n, a, barrier) what the epilogue adds, in stages of the ring
//   columns(tile)                                   64, 128, 192 or 256
//   finish(consumer, tile, d)                       the epilogue
#pragma once
#include "common/hopper.cuh"
#include "common/math.cuh"
#include "common/ptx_wgmma.cuh"
#include "gemm/tile.cuh"

#if __CUDA_ARCH__ != 900 || !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "this file is for sm_90a"
#endif

static_assert(TILE_COLUMNS == 256, "what a stage of the ring has room for");

constexpr u32 CONSUMERS = 2;
constexpr u32 THREADS = 128 * (1 + CONSUMERS);
constexpr u32 CONSUMER_WARPS = 4 * CONSUMERS;
constexpr u32 STAGES = 4;
constexpr u32 SLOTS = 4; // tiles between the scheduler and the end of consumers' work on them
constexpr u32 A_BYTES = BLOCK_Q * 128;
constexpr u32 B_BYTES = TILE_COLUMNS * 128;
constexpr u32 PANELS = TILE_COLUMNS / 64; // of the output
constexpr u32 STAGED = 2;                 // of them at a time

// Registers of a thread. All together they fit what the launch allocates, 384 * 168.
constexpr u32 PRODUCER_REGISTERS = 40;
constexpr u32 CONSUMER_REGISTERS = 232;
static_assert(128 * PRODUCER_REGISTERS + 256 * CONSUMER_REGISTERS <= 384 * 168, "the registers of one thread block");

constexpr u32 WARPGROUP = 1; // and 2: named barriers of the threads of one consumer warpgroup; 0 is __syncthreads

template <class Detail>
struct SharedMemory {
    u8 a[STAGES][A_BYTES];
    u8 b[STAGES][B_BYTES];
    u8 staged[STAGED][BLOCK_Q * 128];
    u64 full[STAGES], empty[STAGES];
    u64 tile_full[SLOTS], tile_empty[SLOTS];
    Tile<Detail> tiles[SLOTS];
};

// ----------------------------------------------------------------------------------------------------- scheduler and producer

template <class Kernel, class Shared>
__device__ __forceinline__ void schedule(const Kernel& kernel, Shared& shared) {
    Work work(kernel.params.plan, blockIdx.x);
    Ring<SLOTS> slot;
    for (bool is_more = true; is_more; slot.advance()) {
        mbarrier_wait(shared_address(&shared.tile_empty[slot.stage()]), slot.phase() ^ 1);
        auto& tile = shared.tiles[slot.stage()];
        is_more = work.next(tile.piece);
        if (is_more) {
            place_piece(kernel, tile);
        } else {
            tile.piece.count = 0;
        }
        mbarrier_arrive(shared_address(&shared.tile_full[slot.stage()]));
    }
}

// Loads 64 columns to a panel: 128 rows from `row` of a tensor on, or 64 of each of two q-blocks. Rows beyond the tensor become zeros. (As an array the
// rows would make the compiler move the descriptors of the products through ordinary registers.)
__device__ __forceinline__ void load_rows(
    u8* panel, const TensorMap* map, u64* barrier, u32 column, u32 row, u32 second, u32 head, u32 batch, u64 policy) {
    u32 to = shared_address(panel), full = shared_address(barrier);
    cp_async_bulk_tensor_4d(to, map, full, column, row, head, batch, policy);
    if (Q_PARTS > 1) cp_async_bulk_tensor_4d(to + A_BYTES / 2, map, full, column, second, head, batch, policy);
}

// Where a warpgroup leaves its part of a piece: [slot][warpgroup][i / 4][thread][4] in the order of accumulators.
constexpr u32 PART_FLOATS = 64 * TILE_COLUMNS;
constexpr u32 LOADED_FLOATS = PART_FLOATS / 4; // with one stage
__device__ __forceinline__ float* part_of(const Plan& plan, u32 slot, u32 warpgroup) {
    return plan.partial_out + (slot * CONSUMERS + warpgroup) * PART_FLOATS;
}

// Calls action(slot) for the pieces of the others, in order: the result does not depend on who came when.
template <class F>
__device__ __forceinline__ void for_other_pieces(const Plan& plan, const Piece& piece, F action) {
#pragma unroll 1
    for (u32 block = piece.first + 1; block <= piece.last; ++block) {
        if (is_before(load_cut(plan.cuts, block), load_cut(plan.cuts, block + 1))) action(slot_of(block, piece.first));
    }
}

// Loads the pieces of the others, once they are there. They do theirs before anything else and wait for no one before that, so this waits
// in rare cases only, and never for ever.
template <class Kernel, class F, class Shared>
__device__ __forceinline__ void load_pieces(const Kernel& kernel, const Piece& piece, F& next_stage, Shared& shared) {
    const Plan& plan = kernel.params.plan;
    for (u32 warpgroup = 0; warpgroup < CONSUMERS; ++warpgroup) {
        u32* arrived = plan.arrived + 2 * piece.first + warpgroup;
        while (ld_acquire_gpu(arrived) + 1 < piece.pieces) {
        }
        *arrived = 0;
    }
    fence_proxy_async_global(); // what they wrote, before the copies that read it
    for_other_pieces(plan, piece, [&](u32 slot) {
        for (u32 part = 0; part < PART_FLOATS / LOADED_FLOATS; ++part) {
            u32 stage = next_stage(), full = shared_address(&shared.full[stage]);
            mbarrier_arrive_expect_tx(full, CONSUMERS * 4 * LOADED_FLOATS);
            for (u32 warpgroup = 0; warpgroup < CONSUMERS; ++warpgroup) {
                u32 to = shared_address(shared.b[stage]) + warpgroup * 4 * LOADED_FLOATS;
                cp_async_bulk(to, part_of(plan, slot, warpgroup) + part * LOADED_FLOATS, 4 * LOADED_FLOATS, full);
            }
        }
    });
}

template <class Kernel, class Shared>
__device__ __forceinline__ void produce(const Kernel& kernel, Shared& shared) {
    Ring<SLOTS> slot;
    Ring<STAGES> ring;
    auto next_stage = [&]() {
        mbarrier_wait(shared_address(&shared.empty[ring.stage()]), ring.phase() ^ 1);
        u32 stage = ring.stage();
        ring.advance();
        return stage;
    };
    for (;; slot.advance()) {
        mbarrier_wait(shared_address(&shared.tile_full[slot.stage()]), slot.phase());
        const auto& tile = shared.tiles[slot.stage()];
        if (tile.piece.count == 0) break;
        u32 steps = count_steps(tile.piece);
        bool ends = tile.piece.begin == 0;
        typename Kernel::Loader loader(kernel, tile, first_step(tile.piece));
#pragma unroll 1
        for (u32 step = 0; step < steps; ++step) {
            u32 stage = next_stage();
            loader.load(shared.a[stage], shared.b[stage], &shared.full[stage]);
        }
        if (ends && tile.piece.slot != WHOLE) load_pieces(kernel, tile.piece, next_stage, shared);
#pragma unroll 1
        for (u32 n = 0; ends && n < kernel.additions(); ++n) {
            u32 stage = next_stage();
            kernel.load_addition(tile, n, shared.a[stage], &shared.full[stage]);
        }
        mbarrier_arrive(shared_address(&shared.tile_empty[slot.stage()]));
    }
}

// ------------------------------------------------------------------------------------------------------------------ consumers

template <u32 COLUMNS>
__device__ __forceinline__ void wgmma(float (&d)[128], u64 a, u64 b, bool accumulate) {
    if constexpr (COLUMNS == 64) wgmma_m64n64k16_ss(d, a, b, accumulate);
    if constexpr (COLUMNS == 128) wgmma_m64n128k16_ss(d, a, b, accumulate);
    if constexpr (COLUMNS == 192) wgmma_m64n192k16_ss(d, a, b, accumulate);
    if constexpr (COLUMNS == 256) wgmma_m64n256k16_ss(d, a, b, accumulate);
}

template <class Kernel, class Shared>
struct Consumer {
    const Kernel& kernel;
    Shared& shared;
    u32 warpgroup; // 0 or 1
    u32 thread;    // within the warpgroup
    u32 lane;
    u32 row; // first of this thread's two rows of the q-block; the other is 8 below
    Ring<STAGES> ring;

    __device__ __forceinline__ Consumer(const Kernel& kernel, Shared& shared, u32 warpgroup)
        : kernel(kernel), shared(shared), warpgroup(warpgroup), thread(threadIdx.x % 128), lane(threadIdx.x % 32) {
        row = 64 * warpgroup + 16 * (thread / 32) + lane / 4;
    }

    __device__ __forceinline__ void run() {
        float d[128];
        for (Ring<SLOTS> slot;; slot.advance()) {
            mbarrier_wait(shared_address(&shared.tile_full[slot.stage()]), slot.phase());
            const auto& tile = shared.tiles[slot.stage()];
            u32 count = same_in_warp(tile.piece.count);
            if (count == 0) break;
            u32 steps = same_in_warp(count_steps(tile.piece));
            switch (same_in_warp(kernel.columns(tile))) {
            case 64: multiply<64>(d, steps); break;
            case 128: multiply<128>(d, steps); break;
            case 192: multiply<192>(d, steps); break;
            default: multiply<256>(d, steps);
            }
            bool ends = same_in_warp(tile.piece.begin) == 0;
            if (ends && same_in_warp(tile.piece.slot) != WHOLE) gather(tile.piece, d);
            if (ends) {
                kernel.finish(*this, tile, d);
            } else {
                leave(tile.piece, d);
            }
            __syncwarp(); // lane 0 speaks for all
            release(&shared.tile_empty[slot.stage()], lane);
        }
        cp_async_bulk_wait_group_read<0>();
    }

    // d = a b^T over the k-steps of a piece. The products of one step run while those of the next are issued.
    template <u32 COLUMNS>
    __device__ __forceinline__ void multiply(float (&d)[128], u32 steps) {
#pragma unroll
        for (u32 i = 0; i < 128; ++i) d[i] = 0.0f;
        if (steps == 0) return;
#pragma unroll 1
        for (u32 step = 0; step < steps; ++step) {
            mbarrier_wait(shared_address(&shared.full[ring.stage()]), ring.phase());
            u64 a = descriptor(shared.a[ring.stage()] + 64 * 128 * warpgroup, 16, 1024);
            u64 b = descriptor(shared.b[ring.stage()], 16, 1024);
            wgmma_fence();
#pragma unroll
            for (u32 part = 0; part < STEP / 16; ++part) wgmma<COLUMNS>(d, a + 2 * part, b + 2 * part, true);
            wgmma_commit_group();
            wgmma_wait_group<1>();
            if (step > 0) release(&shared.empty[Ring<STAGES>{ring.turns - 1}.stage()], lane);
            ring.advance();
        }
        wgmma_wait_group<0>();
        keep_behind<COLUMNS / 2>(d);
        release(&shared.empty[Ring<STAGES>{ring.turns - 1}.stage()], lane);
    }

    // Waits for the next stage of the ring.
    __device__ __forceinline__ u32 wait_stage() {
        mbarrier_wait(shared_address(&shared.full[ring.stage()]), ring.phase());
        return ring.stage();
    }

    // Gives back the last stage that was waited for and read.
    __device__ __forceinline__ void free_stage() {
        __syncwarp(); // lane 0 speaks for all
        release(&shared.empty[ring.stage()], lane);
        ring.advance();
    }

    // Waits until the panels that were sent last have left.
    __device__ __forceinline__ void free_staged() {
        cp_async_bulk_wait_group_read<0>();
        bar_sync(WARPGROUP + warpgroup, 128); // thread 0 has sent them all
    }

    // The 16 bytes number `chunk` of this thread's row of a panel, or of the one `8 * r` rows below, which has the same swizzle.
    __device__ __forceinline__ const u8* chunk_of(const u8* panel, u32 chunk, u32 r) const {
        return panel + (row + 8 * r) * 128 + (chunk ^ row % 8) * 16;
    }

    // Adds `weight` times a panel to 64 columns of the accumulators.
    __device__ __forceinline__ void add_panel(float* x, const u8* panel, float weight) const {
#pragma unroll
        for (u32 chunk = 0; chunk < 8; ++chunk) {
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                float2 pair = unpack(*reinterpret_cast<const u32*>(chunk_of(panel, chunk, r) + lane % 4 * 4));
                x[4 * chunk + 2 * r] = fmaf(weight, pair.x, x[4 * chunk + 2 * r]);
                x[4 * chunk + 2 * r + 1] = fmaf(weight, pair.y, x[4 * chunk + 2 * r + 1]);
            }
        }
    }

    // Leaves this warp's 16 rows of 64 columns where they wait to be sent.
    __device__ __forceinline__ void stage(const float* x, u32 panel) {
        u32 to = shared_address(shared.staged[panel % STAGED]) + first_row_of_warp() * 128, own = lane % 16;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float* y = x + 8 * i;
            stmatrix_x4(to + own * 128 + ((2 * i + lane / 16 ^ own) % 8) * 16, pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
        }
    }

    __device__ __forceinline__ u32 first_row_of_warp() const {
        return same_in_warp(64 * warpgroup + 16 * (thread / 32));
    }

    // Sends the two staged panels from `begin_panel` on, those of them whose bit of `wanted` is set. place(panel) says to which head and column of
    // `out` they go. Copies are as large as they may be: each takes its turn in the copy engine.
    template <class T, class F>
    __device__ __forceinline__ void send(
        const T& tile, u32 begin_panel, u32 wanted, const TensorMap* map, const Tensor4& out, u32 columns, F place) {
        u32 part = Q_PARTS == 1 ? 0 : warpgroup, begin = kernel.params.shape.first_token;
        u32 first = same_in_warp(tile.first[part]) + (Q_PARTS == 1 ? 64 * warpgroup : 0), end = same_in_warp(tile.end[part]);
        fence_proxy_async();
        bar_sync(WARPGROUP + warpgroup, 128);
        // Rows end with the tensor, which copies know, but not with an irregular q-block.
        if (first + 64 > end && end < begin + kernel.params.shape.tokens) {
#pragma unroll 1
            for (u32 panel = begin_panel; panel < begin_panel + STAGED; ++panel) {
                if (!(wanted >> panel & 1)) continue;
                uint2 at = place(panel); // head, column
                copy_rows(shared.staged[panel % STAGED] + 64 * 128 * warpgroup, tile.batch, first, end, out, at.x, at.y, columns);
            }
        } else if (thread == 0 && first < end) {
#pragma unroll 1
            for (u32 panel = begin_panel; panel < begin_panel + STAGED; ++panel) {
                if (!(wanted >> panel & 1)) continue;
                uint2 at = place(panel);
                u32 from = shared_address(shared.staged[panel % STAGED] + 64 * 128 * warpgroup);
                cp_async_bulk_tensor_store_4d(map, from, at.y, first - begin, at.x, tile.batch);
            }
            cp_async_bulk_commit_group();
        }
    }

    // The rows that belong to the q-block.
    __device__ __forceinline__ void copy_rows(
        const u8* from, u32 batch, u32 first, u32 end, const Tensor4& out, u32 head, u32 column, u32 columns) {
        u16* base = static_cast<u16*>(out.data) + batch * out.batch_stride + head * out.head_stride + column;
        base += u64(first - kernel.params.shape.first_token) * out.token_stride;
#pragma unroll 1
        for (u32 at = thread; at < 64 * 8; at += 128) {
            u32 local = at / 8, chunk = at % 8;
            if (first + local >= end || column + 8 * chunk >= columns) continue;
            uint4 line = *reinterpret_cast<const uint4*>(from + local * 128 + ((chunk ^ local) % 8) * 16);
            *reinterpret_cast<uint4*>(base + local * out.token_stride + 8 * chunk) = line;
        }
    }

    // Leaves a piece of a divided tile to the thread block that has its end, and does not wait for it.
    __device__ __forceinline__ void leave(const Piece& piece, const float (&d)[128]) {
        float4* to = reinterpret_cast<float4*>(part_of(kernel.params.plan, piece.slot, warpgroup)) + thread;
#pragma unroll
        for (u32 i = 0; i < 32; ++i) __stcg(to + i * 128, make_float4(d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]));
        bar_sync(WARPGROUP + warpgroup, 128);
        if (thread == 0) red_release_gpu_add(kernel.params.plan.arrived + 2 * piece.first + warpgroup, 1);
    }

    // Adds the pieces of the others.
    __device__ __forceinline__ void gather(const Piece& piece, float (&d)[128]) {
        for_other_pieces(kernel.params.plan, piece, [&](u32) {
#pragma unroll
            for (u32 part = 0; part < PART_FLOATS / LOADED_FLOATS; ++part) {
                const float4* from = reinterpret_cast<const float4*>(shared.b[wait_stage()] + warpgroup * 4 * LOADED_FLOATS) + thread;
#pragma unroll
                for (u32 i = 0; i < LOADED_FLOATS / 512; ++i) {
                    float4 x = from[i * 128];
                    float* y = d + part * (LOADED_FLOATS / 128) + 4 * i;
                    y[0] += x.x;
                    y[1] += x.y;
                    y[2] += x.z;
                    y[3] += x.w;
                }
                free_stage();
            }
        });
    }
};

// -------------------------------------------------------------------------------------------------------------------- kernel

template <class Kernel, class Shared>
__device__ __forceinline__ void run(const Kernel& kernel, Shared& shared) {
    u32 warpgroup = same_in_warp(threadIdx.x / 128);
    if (threadIdx.x == 0) {
        auto init = [](u64* full, u64* empty, u32 count, u32 readers) {
            for (u32 i = 0; i < count; ++i) {
                mbarrier_init(shared_address(full + i), 1);
                mbarrier_init(shared_address(empty + i), readers);
            }
        };
        init(shared.full, shared.empty, STAGES, CONSUMER_WARPS);
        init(shared.tile_full, shared.tile_empty, SLOTS, CONSUMER_WARPS + 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warpgroup == 0) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce(kernel, shared);
        if (threadIdx.x == 32) schedule(kernel, shared);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        Consumer<Kernel, Shared>(kernel, shared, warpgroup - 1).run();
    }
}
