// GEMM-O for Hopper (sm_90a): the projection of the output of attention, for the (q-block, head) tiles of a set only.
//
//     out[b, t, :] = sum over heads h of the set of o[b, h, t, :] w[:, h, :]^T + further[b, t, :] w[:, behind the heads]^T + bias
//                  + sum over i of weights[i] terms[i][b, t, :]
//
// o: [batch, heads, tokens, HEAD_DIM], further: [batch, tokens, further_in], w: [out, heads * HEAD_DIM + further_in],
// terms and out: [batch, tokens, out], bf16 or fp16, any strides; the bias is in single precision, as sums are. Every row of out is written.
//
// What is skipped: heads that a q-block has not in the set are no k-steps of its tiles; the producer walks the others by the bits of one
// word for each q-block. What they would have given arrives as terms, the forecast of their projection: 64 columns at a time in stages of
// the ring, as if they were one more k-step, so that they are there when the sums are done.
// pipeline_sm90.cuh has who does what and the memory plan; what is computed and by whom stands in the plan (gemm/plan.cu).
//
// Source: FlashOmni (arXiv 2509.25401), section 3.4 (GEMM-O), whose kernel reads the bias before the first product.
#include "gemm/pipeline_sm90.cuh"

// The terms of a forecast, as tensor maps.
struct TermMaps {
    TensorMap of[MAX_ORDER + 1];
};

struct GemmO {
    using Detail = TileColumns;
    using OwnTile = Tile<Detail>;

    const GemmParams& params;
    const GemmOParams& own;
    const TensorMap *o_map, *further_map, *w_map;
    const TermMaps* terms;

    __device__ __forceinline__ Detail detail(u32 batch, u32 q_block, u32 slot) const {
        return find_columns(params, batch, q_block, slot);
    }

    __device__ __forceinline__ u32 columns(const OwnTile&) const {
        return TILE_COLUMNS;
    }

    // Walks the heads of the set from the first to the last, then the further inputs.
    struct Loader {
        const GemmO& kernel;
        u32 batch, first, row, column; // first of all tokens, row of those of the projection
        HeadWalk<STEP> heads;
        u32 step; // of the further inputs

        __device__ __forceinline__ Loader(const GemmO& kernel, const OwnTile& tile, u32 begin)
            : kernel(kernel), batch(tile.batch), first(tile.first), row(tile.first - kernel.params.shape.first_token),
              column(tile.detail.column), heads(tile.detail.heads, tile.detail.head_steps, min(begin, tile.detail.head_steps)),
              step(begin - min(begin, tile.detail.head_steps)) {}

        __device__ __forceinline__ void load(u8* a, u8* b, u64* barrier) {
            u32 full = shared_address(barrier), to = shared_address(a);
            mbarrier_arrive_expect_tx(full, A_BYTES + B_BYTES);
            u32 from;
            if (heads.left > 0) {
                u32 head = heads.peek();
                from = head * HEAD_DIM + heads.part * STEP;
                cp_async_bulk_tensor_4d(to, kernel.o_map, full, heads.part * STEP, first, head, batch, EVICT_NORMAL);
                heads.advance();
            } else {
                from = kernel.params.shape.heads * HEAD_DIM + step * STEP;
                cp_async_bulk_tensor_4d(to, kernel.further_map, full, step * STEP, row, 0, batch, EVICT_NORMAL);
                ++step;
            }
            cp_async_bulk_tensor_4d(shared_address(b), kernel.w_map, full, from, column, 0, 0, EVICT_LAST);
        }
    };

    // 64 columns of each term at a time.
    __device__ __forceinline__ u32 additions() const {
        return TILE_COLUMNS / 64 * own.count;
    }

    __device__ __forceinline__ void load_addition(const OwnTile& tile, u32 n, u8* a, u64* barrier) const {
        u32 full = shared_address(barrier), panel = n / own.count, term = n % own.count;
        mbarrier_arrive_expect_tx(full, A_BYTES);
        u32 row = tile.first - params.shape.first_token;
        cp_async_bulk_tensor_4d(shared_address(a), &terms->of[term], full, tile.detail.column + 64 * panel, row, 0, tile.batch, EVICT_FIRST);
    }

    template <class C>
    __device__ __forceinline__ void finish(C& consumer, const OwnTile& tile, float (&d)[128]) const {
        u32 count = own.count;
#pragma unroll
        for (u32 panel = 0; panel < TILE_COLUMNS / 64; ++panel) {
            float* x = d + 32 * panel;
#pragma unroll 1
            for (u32 term = 0; term < count; ++term) consumer.add_stage(x, own.weights[term]);
            u32 column = same_in_warp(tile.detail.column) + 64 * panel;
            if (column >= params.shape.columns) continue;
            if (own.bias != nullptr) {
#pragma unroll
                for (u32 chunk = 0; chunk < 8; ++chunk) {
                    // A multiple of 8, so that no chunk is cut.
                    if (column + 8 * chunk >= params.shape.columns) break;
                    float2 pair = __ldg(reinterpret_cast<const float2*>(own.bias + column + 8 * chunk) + consumer.lane % 4);
#pragma unroll
                    for (u32 r = 0; r < 2; ++r) x[4 * chunk + 2 * r] += pair.x, x[4 * chunk + 2 * r + 1] += pair.y;
                }
            }
            consumer.send(tile, x, own.out, 0, column, params.shape.columns);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_o(
    const __grid_constant__ GemmOParams params,
    const __grid_constant__ TensorMap o_map,
    const __grid_constant__ TensorMap further_map,
    const __grid_constant__ TensorMap w_map,
    const __grid_constant__ TermMaps terms) {
    extern __shared__ __align__(1024) u8 memory[];
    using Shared = SharedMemory<GemmO::Detail>;
    static_assert(sizeof(Shared) <= OMNI_SHARED_BYTES, "the shared memory that the host launches with");
    if (threadIdx.x == 0) {
        prefetch_tensormap(&o_map);
        prefetch_tensormap(&w_map);
    }
    run(GemmO{params.gemm, params, &o_map, &further_map, &w_map, &terms}, *reinterpret_cast<Shared*>(memory));
}
