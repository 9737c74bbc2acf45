// GEMM-O for Hopper (sm_90a): the projection of the output of attention, for the (q-block, head) tiles of a set only.
//
//     out[b, t, :] = sum over heads h of the set of o[b, h, t, :] w[:, h, :]^T + further[b, t, :] w[:, behind the heads]^T + bias
//                  + sum over i of weights[i] terms[i][b, t, :]
//
// o: [batch, heads, tokens, HEAD_DIM], further: [batch, tokens, further_in], w: [out, heads * HEAD_DIM + further_in],
// terms and out: [batch, tokens, out], bf16 or fp16, any strides; the bias is in single precision, as sums are. Every row of out is written.
//
// What is skipped: heads that a q-block has not in the set are no k-steps of its tiles; the producer walks the others by the bits of one
// word for each q-block. Of two q-blocks of 64 that share tiles, one gets zeros for a head that only the other has. What they would have given arrives as terms, the forecast of their projection: 64 columns at a time in stages of
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
    const TensorMap *o_map, *further_map, *w_map, *out_map;
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
        u32 batch, column;
        u32 first, second; // tokens of each q-block
        HeadWalk<STEP> heads;
        u32 step; // of the further inputs

        __device__ __forceinline__ Loader(const GemmO& kernel, const OwnTile& tile, u32 begin)
            : kernel(kernel), batch(tile.batch), column(tile.detail.column), first(tile.first[0]), second(tile.first[Q_PARTS - 1]),
              heads(tile.detail.heads, tile.detail.head_steps, min(begin, tile.detail.head_steps)),
              step(begin - min(begin, tile.detail.head_steps)) {}

        __device__ __forceinline__ void load(u8* a, u8* b, u64* barrier) {
            const GemmShape& shape = kernel.params.shape;
            u32 full = shared_address(barrier);
            mbarrier_arrive_expect_tx(full, A_BYTES + B_BYTES);
            u32 from;
            if (heads.left > 0) {
                u32 head = heads.peek();
                from = head * HEAD_DIM + heads.part * STEP;
                u32 one = Q_PARTS == 1 || heads.bits.has(head, 0) ? first : shape.q_tokens;
                u32 other = Q_PARTS == 1 || heads.bits.has(head, 1) ? second : shape.q_tokens;
                load_rows(a, kernel.o_map, barrier, heads.part * STEP, one, other, head, batch, EVICT_NORMAL);
                heads.advance();
            } else {
                from = shape.heads * HEAD_DIM + step * STEP;
                u32 begin = shape.first_token;
                load_rows(a, kernel.further_map, barrier, step * STEP, first - begin, second - begin, 0, batch, EVICT_NORMAL);
                ++step;
            }
            cp_async_bulk_tensor_4d(shared_address(b), kernel.w_map, full, from, column, 0, 0, EVICT_LAST);
        }
    };

    // 64 columns of each term at a time.
    __device__ __forceinline__ u32 additions() const {
        return PANELS * own.count;
    }

    __device__ __forceinline__ void load_addition(const OwnTile& tile, u32 n, u8* a, u64* barrier) const {
        mbarrier_arrive_expect_tx(shared_address(barrier), A_BYTES);
        u32 term = n % own.count, column = tile.detail.column + 64 * (n / own.count);
        u32 row = tile.first[0] - params.shape.first_token, second = tile.first[Q_PARTS - 1] - params.shape.first_token;
        load_rows(a, &terms->of[term], barrier, column, row, second, 0, tile.batch, EVICT_FIRST);
    }

    template <class C>
    __device__ __forceinline__ void finish(C& consumer, const OwnTile& tile, float (&d)[128]) const {
        u32 count = own.count, first = same_in_warp(tile.detail.column), columns = params.shape.columns;
        u32 wanted = (1 << min((columns - first + 63) / 64, PANELS)) - 1;
        auto place = [&](u32 panel) { return make_uint2(0, first + 64 * panel); };
#pragma unroll
        for (u32 panel = 0; panel < PANELS; ++panel) {
            float* x = d + 32 * panel;
#pragma unroll 1
            for (u32 term = 0; term < count; ++term) {
                consumer.add_panel(x, consumer.shared.a[consumer.wait_stage()], own.weights[term]);
                consumer.free_stage();
            }
            if (own.bias != nullptr) add_bias(x, first + 64 * panel, consumer.lane % 4);
            if (panel % STAGED == 0) consumer.free_staged();
            consumer.stage(x, panel);
            if (panel % STAGED == STAGED - 1) consumer.send(tile, panel + 1 - STAGED, wanted, out_map, own.out, columns, place);
        }
    }

    __device__ __forceinline__ void add_bias(float* x, u32 column, u32 quad) const {
#pragma unroll
        for (u32 chunk = 0; chunk < 8; ++chunk) {
            // Columns are a multiple of 8, so that no chunk is cut.
            if (column + 8 * chunk >= params.shape.columns) break;
            float2 pair = __ldg(reinterpret_cast<const float2*>(own.bias + column + 8 * chunk) + quad);
#pragma unroll
            for (u32 r = 0; r < 2; ++r) x[4 * chunk + 2 * r] += pair.x, x[4 * chunk + 2 * r + 1] += pair.y;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_o(
    const __grid_constant__ GemmOParams params,
    const __grid_constant__ TensorMap o_map,
    const __grid_constant__ TensorMap further_map,
    const __grid_constant__ TensorMap w_map,
    const __grid_constant__ TensorMap out_map,
    const __grid_constant__ TermMaps terms) {
    extern __shared__ __align__(1024) u8 memory[];
    using Shared = SharedMemory<GemmO::Detail>;
    static_assert(sizeof(Shared) <= OMNI_SHARED_BYTES, "the shared memory that the host launches with");
    if (threadIdx.x == 0) {
        prefetch_tensormap(&o_map);
        prefetch_tensormap(&w_map);
        prefetch_tensormap(&out_map);
    }
    run(GemmO{params.gemm, params, &o_map, &further_map, &w_map, &out_map, &terms}, *reinterpret_cast<Shared*>(memory));
}
