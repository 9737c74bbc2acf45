// GEMM-Q for Hopper (sm_90a): the projection of queries, keys or values by heads, for the (q-block, head) tiles of a set only.
//
//     out[b, h, t, :] = rotary(norm(x[b, t, :] w[h, :, :]^T + bias[h, :]))          for the tiles (block of t, h) of the set
//
// x: [batch, tokens, in], w: [heads, head_dim, in], out: [batch, heads, tokens, HEAD_DIM], bf16 or fp16, any strides; bias, RMSNorm over the
// channels of a head and rotary embedding are optional and in single precision, as sums are. Rows of other tiles stay untouched.
//
// What is skipped: a tile of output, 128 x 256, holds a q-block and the next two or four of its heads in the set, which need not be
// neighbours: the rows of w of each are loaded by a box of their own. So tiles are full but for the last of a q-block, which is narrower.
// Of two q-blocks of 64 it holds the heads that either has in the set, and writes those of each.
// pipeline_sm90.cuh has who does what and the memory plan; what is computed and by whom stands in the plan (gemm/plan.cu).
//
// Source: FlashOmni (arXiv 2509.25401), section 3.4 (GEMM-Q); the pairing of heads is ours.
#include "gemm/epilogue.cuh"
#include "gemm/pipeline_sm90.cuh"

struct GemmQ {
    using Detail = TileHeads;
    using OwnTile = Tile<Detail>;

    const GemmParams& params;
    const GemmQParams& own;
    const TensorMap *x_map, *w_map, *rotary_map, *out_map;

    __device__ __forceinline__ Detail detail(u32 batch, u32 q_block, u32 slot) const {
        return find_heads(params, batch, q_block, slot);
    }

    __device__ __forceinline__ u32 columns(const OwnTile& tile) const {
        return tile.detail.count * HEAD_DIM;
    }

    struct Loader {
        const GemmQ& kernel;
        u32 batch;
        u32 row, second; // of each q-block, from the first token of the projection on
        Detail detail;
        u32 step;

        __device__ __forceinline__ Loader(const GemmQ& kernel, const OwnTile& tile, u32 step)
            : kernel(kernel), batch(tile.batch), row(tile.first[0] - kernel.params.shape.first_token),
              second(tile.first[Q_PARTS - 1] - kernel.params.shape.first_token), detail(tile.detail), step(step) {}

        __device__ __forceinline__ void load(u8* a, u8* b, u64* barrier) {
            u32 full = shared_address(barrier), column = STEP * step++;
            mbarrier_arrive_expect_tx(full, A_BYTES + detail.count * HEAD_DIM * 128);
            load_rows(a, kernel.x_map, barrier, column, row, second, 0, batch, EVICT_NORMAL);
#pragma unroll
            for (u32 i = 0; i < TILE_HEADS; ++i) {
                if (i < detail.count) {
                    u32 to = shared_address(b) + i * HEAD_DIM * 128;
                    cp_async_bulk_tensor_4d(to, kernel.w_map, full, column, detail.head(i) * HEAD_DIM, 0, 0, EVICT_LAST);
                }
            }
        }
    };

    // Cosines and sines of 16 pairs of channels at a time: as many bytes as 64 numbers of 16 bits.
    static constexpr u32 TURN_PANELS = HEAD_DIM / 32;

    __device__ __forceinline__ u32 additions() const {
        return own.rotary == nullptr ? 0 : TURN_PANELS;
    }

    __device__ __forceinline__ void load_addition(const OwnTile& tile, u32 n, u8* a, u64* barrier) const {
        mbarrier_arrive_expect_tx(shared_address(barrier), A_BYTES);
        load_rows(a, rotary_map, barrier, 64 * n, tile.first[0], tile.first[Q_PARTS - 1], 0, 0, EVICT_LAST);
    }

    // Bits of the panels of those heads that are in the set for one of the q-blocks.
    __device__ __forceinline__ static u32 panels_of(const Detail& detail, u32 part) {
        u32 panels = 0;
#pragma unroll
        for (u32 i = 0; i < TILE_HEADS; ++i) {
            if (i < detail.count && detail.bits.has(detail.head(i), part)) panels |= ((1 << HEAD_STEPS) - 1) << i * HEAD_STEPS;
        }
        return same_in_warp(panels);
    }

    template <class C>
    __device__ __forceinline__ void finish(C& consumer, const OwnTile& tile, float (&d)[128]) const {
        u32 count = same_in_warp(tile.detail.count), quad = consumer.lane % 4;
#pragma unroll
        for (u32 i = 0; i < TILE_HEADS; ++i) {
            if (i < count) normalise(d + i * (HEAD_DIM / 2), own, tile.detail.head(i), quad);
        }
#pragma unroll
        for (u32 part = 0; part < TURN_PANELS; ++part) {
            if (own.rotary == nullptr) break;
            const u8* panel = consumer.shared.a[consumer.wait_stage()];
            auto turns = [&](u32 pair, u32 r) {
                return *reinterpret_cast<const float2*>(consumer.chunk_of(panel, pair % 16 / 2, r) + pair % 2 * 8);
            };
            // Zeros, where the tile has no head, turn to zeros.
            rotate<TILE_HEADS>(d, part, own.halves, quad, turns);
            consumer.free_stage();
        }
        u32 wanted = Q_PARTS == 1 ? (1 << count * HEAD_STEPS) - 1 : panels_of(tile.detail, consumer.warpgroup);
        auto place = [&](u32 panel) { return make_uint2(tile.detail.head(panel / HEAD_STEPS), panel % HEAD_STEPS * 64); };
#pragma unroll
        for (u32 panel = 0; panel < PANELS; panel += STAGED) {
            consumer.free_staged();
#pragma unroll
            for (u32 i = panel; i < panel + STAGED; ++i) consumer.stage(d + 32 * i, i);
            consumer.send(tile, panel, wanted, out_map, own.out, HEAD_DIM, place);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_q(
    const __grid_constant__ GemmQParams params,
    const __grid_constant__ TensorMap x_map,
    const __grid_constant__ TensorMap w_map,
    const __grid_constant__ TensorMap rotary_map,
    const __grid_constant__ TensorMap out_map) {
    extern __shared__ __align__(1024) u8 memory[];
    using Shared = SharedMemory<GemmQ::Detail>;
    static_assert(sizeof(Shared) <= OMNI_SHARED_BYTES, "the shared memory that the host launches with");
    if (threadIdx.x == 0) {
        prefetch_tensormap(&x_map);
        prefetch_tensormap(&w_map);
        prefetch_tensormap(&out_map);
    }
    run(GemmQ{params.gemm, params, &x_map, &w_map, &rotary_map, &out_map}, *reinterpret_cast<Shared*>(memory));
}
