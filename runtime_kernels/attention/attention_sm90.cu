// Fused attention under sparse symbols for Hopper (sm_90a): TMA, wgmma, specialised warps.
//
//     out[i] = sum_j p[i, j] v[j],   p[i, :] = softmax(scale * q[i] k[:]^T) over the keys that the symbols leave to row i
//
// q, out: [batch, heads, q_tokens, HEAD_DIM], k, v: [batch, kv_heads, kv_tokens, HEAD_DIM], bf16 or fp16, any strides;
// optionally lse [batch, heads, q_tokens] in f32. A q-block whose bit of S_c is 0 costs nothing and stays untouched, or is filled with
// its forecast; a kv-block whose bit of S_s is 0 is never loaded. What is live and who does it stands in the plan (plan.cu).
//
// Who does what, in one thread block of 384 threads per multiprocessor that stays for all of its work:
//   warpgroup 0, warp 0   producer: walks the bitmaps, loads q, k and v by TMA, runs ahead into the next q-block
//   warpgroup 0, others   fill the rows that are not computed: zeros or the forecast
//   warpgroup 1 and 2     consumers: 64 rows each. While one computes weights, the other has the tensor cores (named
//                         barriers give turns), and within a warpgroup the scores of the next tile run beside the
//                         weighted sum of the last
//
// Shared memory (bytes; HEAD_DIM 128 / 64):
//   q   2 stages of [128][HEAD_DIM]    65,536 / 32,768   rows of a warpgroup also stage its output
//   k   STAGES of [128][HEAD_DIM]      65,536 / 65,536
//   v   STAGES of [128][HEAD_DIM]      65,536 / 65,536
//   barriers, work slots, tile notes      512 /    512
// Each array is in panels of 64 columns: [panel][128 rows][128 bytes], swizzled by 128 bytes as TMA and wgmma expect.
//
// Source: FlashAttention-3 (arXiv 2407.08608) for the division of work and the overlap; FlashOmni (arXiv 2509.25401) for the symbols.
#include "attention/config.cuh"
#include "attention/masks.cuh"
#include "attention/softmax.cuh"
#include "common/ptx.cuh"
#include "common/symbols.cuh"
#include "common/work.cuh"
#include "params.cuh"

#if __CUDA_ARCH__ != 900 || !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "this file is for sm_90a"
#endif

constexpr u32 CONSUMERS = 2;
constexpr u32 THREADS = 128 * (1 + CONSUMERS);
constexpr u32 CONSUMER_WARPS = 4 * CONSUMERS;
constexpr u32 FILLERS = 96;
constexpr u32 Q_STAGES = 2;
constexpr u32 STAGES = HEAD_DIM == 128 ? 2 : 4;
constexpr u32 PANELS = HEAD_DIM / 64;
constexpr u32 PANEL_BYTES = TILE * 128;
constexpr u32 STAGE_BYTES = PANELS * PANEL_BYTES;

// Registers of a thread: 40 * 128 + 232 * 256 fit the 64 Ki of a multiprocessor.
constexpr u32 PRODUCER_REGISTERS = 72;
constexpr u32 CONSUMER_REGISTERS = 216;

// Named barriers; 0 is __syncthreads.
constexpr u32 TURN = 1;      // and 2: the turn of each consumer warpgroup
constexpr u32 WARPGROUP = 3; // and 4: the threads of one consumer warpgroup
constexpr u32 ALL_CONSUMERS = 5;

// A q-block on its way: written by the producer before it announces q.
struct Slot {
    u32 batch;
    u32 head;
    u32 q_first;
    u32 q_rows; // 0: there is no more work
    u32 tiles;
    u32 slot; // of the workspace, or WHOLE
    u32 first;
    u32 last;
    u32 pieces;
    u32 padding[3];
};

struct SharedMemoryPlan {
    u8 q[Q_STAGES][STAGE_BYTES];
    u8 k[STAGES][STAGE_BYTES];
    u8 v[STAGES][STAGE_BYTES];
    u64 q_full[Q_STAGES], q_empty[Q_STAGES];
    u64 k_full[STAGES], k_empty[STAGES];
    u64 v_full[STAGES], v_empty[STAGES];
    Slot slots[Q_STAGES];
    TileNote notes[STAGES];
    u32 is_last_piece;
};
static_assert(sizeof(SharedMemoryPlan) <= 232448, "the shared memory of one thread block");

// A place in a ring of stages, and the parity of its barriers' current phase.
template <u32 COUNT>
struct Ring {
    u32 stage = 0;
    u32 phase = 0;

    __device__ __forceinline__ void advance() {
        if (++stage == COUNT) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// ------------------------------------------------------------------------------------------------------------------ producer

// Loads `rows` rows of all panels, from token `token` on, to row `at` of a stage.
template <u32 ROWS>
__device__ __forceinline__ void load_rows(
    u8* stage, u32 at, const TensorMap* map, u64* barrier, u32 token, u32 head, u32 batch, u64 policy) {
#pragma unroll
    for (u32 panel = 0; panel < PANELS; ++panel) {
        u32 destination = shared_address(stage) + panel * PANEL_BYTES + at * 128;
        cp_async_bulk_tensor_4d(destination, map, shared_address(barrier), panel * 64, token, head, batch, policy);
    }
}

// The kv-blocks of one tile to a stage of k or v.
__device__ __forceinline__ void load_tile(
    u8* stage, const TensorMap* map, u64* barrier, const Tile& tile, u32 head, u32 batch) {
    mbarrier_arrive_expect_tx(shared_address(barrier), STAGE_BYTES);
#pragma unroll
    for (u32 part = 0; part < TILE / KV_BLOCK; ++part) {
        load_rows<KV_BLOCK>(stage, part * KV_BLOCK, map, barrier, tile.token[part], head, batch, EVICT_LAST);
    }
}

__device__ __forceinline__ void produce(
    SharedMemoryPlan& shared, const AttentionParams& params, const TensorMap* q_map, const TensorMap* k_map, const TensorMap* v_map) {
    const Shape& shape = params.shape;
    Ring<Q_STAGES> q;
    Ring<STAGES> k, v;
    Work work(params.plan, blockIdx.x);
    for (Piece piece; work.next(piece); q.advance()) {
        u32 q_block = piece.row % shape.q_blocks, row = piece.row / shape.q_blocks;
        u32 head = row % shape.heads, batch = row / shape.heads;
        u32 kv_head = head / (shape.heads / shape.kv_heads);
        u32 symbol_row = shape.symbol_batches == 1 ? head * shape.q_blocks + q_block : piece.row;
        u32 q_first = MASKS ? __ldg(params.symbols.q_start + q_block) : q_block * BLOCK_Q;
        u32 q_end = MASKS ? __ldg(params.symbols.q_start + q_block + 1) : min(q_first + BLOCK_Q, shape.q_tokens);
        TileWalk tiles(params, symbol_row, piece.begin);

        mbarrier_wait(shared_address(&shared.q_empty[q.stage]), q.phase ^ 1);
        Slot& slot = shared.slots[q.stage];
        slot.batch = batch;
        slot.head = head;
        slot.q_first = q_first;
        slot.q_rows = q_end - q_first;
        slot.tiles = piece.count;
        slot.slot = piece.slot;
        slot.first = piece.first;
        slot.last = piece.last;
        slot.pieces = piece.pieces;
        mbarrier_arrive_expect_tx(shared_address(&shared.q_full[q.stage]), STAGE_BYTES);
        load_rows<BLOCK_Q>(shared.q[q.stage], 0, q_map, &shared.q_full[q.stage], q_first, head, batch, EVICT_FIRST);

        // v stays one tile behind k, as it is needed.
        Tile last;
        for (u32 n = 0; n <= piece.count; ++n) {
            Tile tile;
            if (n < piece.count) {
                tile = tiles.next();
                mbarrier_wait(shared_address(&shared.k_empty[k.stage]), k.phase ^ 1);
                shared.notes[k.stage] = tile.note;
                load_tile(shared.k[k.stage], k_map, &shared.k_full[k.stage], tile, kv_head, batch);
                k.advance();
            }
            if (n > 0) {
                mbarrier_wait(shared_address(&shared.v_empty[v.stage]), v.phase ^ 1);
                load_tile(shared.v[v.stage], v_map, &shared.v_full[v.stage], last, kv_head, batch);
                v.advance();
            }
            last = tile;
        }
    }
    mbarrier_wait(shared_address(&shared.q_empty[q.stage]), q.phase ^ 1);
    shared.slots[q.stage].q_rows = 0;
    mbarrier_arrive(shared_address(&shared.q_full[q.stage]));
}

// ------------------------------------------------------------------------------------------------------------------ consumers

// The matrix descriptor of a swizzled array in shared memory (PTX, "matrix descriptor"): `stride` bytes lie between groups of eight
// rows, `leading` between panels where the rows run along k.
__device__ __forceinline__ u64 descriptor(const void* pointer, u32 leading, u32 stride) {
    constexpr u64 SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | u64(stride >> 4) << 32 | u64(leading >> 4) << 16 | (shared_address(pointer) >> 4 & 0x3FFF);
}

// s = q k^T of one tile.
__device__ __forceinline__ void start_scores(float (&s)[64], u64 q, u64 k) {
    wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < HEAD_DIM / 16; ++step) {
        // 16 columns are 32 bytes of a panel; descriptors count 16.
        u32 offset = (step / 4 * PANEL_BYTES + step % 4 * 32) >> 4;
        wgmma_m64n128k16(s, q + offset, k + offset, step > 0);
    }
    wgmma_commit_group();
}

// o (+)= p v of one tile.
__device__ __forceinline__ void start_sum(float (&o)[HEAD_DIM / 2], const u32 (&p)[32], u64 v, bool accumulate) {
    wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < TILE / 16; ++step) {
        u64 rows = v + step * (16 * 128 >> 4);
        const u32* a = p + 4 * step;
        wgmma_m64nNk16_rs(o, a[0], a[1], a[2], a[3], rows, accumulate || step > 0);
    }
    wgmma_commit_group();
}

// Weights as the left operand of wgmma: an accumulator has its layout already.
__device__ __forceinline__ void pack_weights(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
    for (u32 i = 0; i < 32; ++i) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

// Says that this warp has read a stage.
__device__ __forceinline__ void release(u64* barrier, u32 lane) {
    if (lane == 0) mbarrier_arrive(shared_address(barrier));
}

struct Consumer {
    SharedMemoryPlan& shared;
    const AttentionParams& params;
    u32 warpgroup; // 0 or 1
    u32 thread;    // within the warpgroup
    u32 lane;
    u32 row; // first of this thread's two rows of the q-block; the other is 8 below
    Ring<Q_STAGES> q;
    Ring<STAGES> k, v;

    __device__ __forceinline__ Consumer(SharedMemoryPlan& shared, const AttentionParams& params, u32 index)
        : shared(shared), params(params), warpgroup(index / 128), thread(index % 128), lane(index % 32) {
        row = 64 * warpgroup + 16 * (thread / 32) + lane / 4;
    }

    __device__ __forceinline__ void run() {
        // The first warpgroup begins.
        if (warpgroup == 1) bar_arrive(TURN, 256);
        for (;; q.advance()) {
            mbarrier_wait(shared_address(&shared.q_full[q.stage]), q.phase);
            if (shared.slots[q.stage].q_rows == 0) break;
            attend(shared.slots[q.stage]);
        }
    }

    __device__ __forceinline__ u64 k_descriptor() const {
        return descriptor(shared.k[k.stage], 16, 1024);
    }

    __device__ __forceinline__ u64 v_descriptor() const {
        return descriptor(shared.v[v.stage], PANEL_BYTES, 1024);
    }

    __device__ __forceinline__ void attend(const Slot& slot) {
        float o[HEAD_DIM / 2], s[64], factor[2];
        u32 p[32];
        Softmax softmax(params.scale_log2);
        u64 q_rows = descriptor(shared.q[q.stage] + 64 * 128 * warpgroup, 16, 1024);
        u32 tiles = slot.tiles;

        auto wait_k = [&] { mbarrier_wait(shared_address(&shared.k_full[k.stage]), k.phase); };
        auto wait_v = [&] { mbarrier_wait(shared_address(&shared.v_full[v.stage]), v.phase); };
        auto finish_scores = [&](bool may_be_masked) {
            keep_behind(s);
            if (may_be_masked) apply_note(s, shared.notes[k.stage], params.symbols.tiles, row, lane % 4);
            release(&shared.k_empty[k.stage], lane);
            k.advance();
        };
        auto finish_sum = [&] {
            keep_behind(o);
            release(&shared.v_empty[v.stage], lane);
            v.advance();
        };

        wait_k();
        start_scores(s, q_rows, k_descriptor());
        wgmma_wait_group<0>();
        finish_scores(true);
        softmax.weigh(s, factor);
        pack_weights(p, s);
        for (u32 n = 1; n < tiles; ++n) {
            wait_k();
            bar_sync(TURN + warpgroup, 256);
            start_scores(s, q_rows, k_descriptor());
            wait_v();
            start_sum(o, p, v_descriptor(), n > 1);
            bar_arrive(TURN + (warpgroup ^ 1), 256);
            wgmma_wait_group<1>();
            finish_scores(MASKS);
            bool rescales = softmax.weigh(s, factor);
            wgmma_wait_group<0>();
            finish_sum();
            if (rescales) rescale(o, factor);
            pack_weights(p, s);
        }
        wait_v();
        start_sum(o, p, v_descriptor(), tiles > 1);
        wgmma_wait_group<0>();
        finish_sum();

        float sum[2] = {quad_sum(softmax.sum[0]), quad_sum(softmax.sum[1])};
        float reference[2] = {softmax.reference[0] * softmax.scale, softmax.reference[1] * softmax.scale};
        if (slot.slot == WHOLE || merge(slot, o, reference, sum)) store(slot, o, reference, sum);
        // What was staged in the rows of q must be out of the way of the next copy.
        fence_proxy_async();
        __syncwarp();
        release(&shared.q_empty[q.stage], lane);
    }

    __device__ __forceinline__ void rescale(float (&o)[HEAD_DIM / 2], const float (&factor)[2]) {
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 2; ++i) o[i] *= factor[i / 2 % 2];
    }

    // Leaves a piece of a divided row in the workspace. The warpgroups that come last gather all pieces, in order, so that the
    // result does not depend on who that is; true for them. `reference` is in powers of two here.
    __device__ __forceinline__ bool merge(const Slot& slot, float (&o)[HEAD_DIM / 2], float (&reference)[2], float (&sum)[2]) {
        // [slot][warpgroup][i / 4][thread][4]: in the order of accumulators, which no one else reads.
        constexpr u32 CHUNKS = HEAD_DIM / 8;
        float4* outputs = reinterpret_cast<float4*>(params.plan.partial_out) + warpgroup * CHUNKS * 128 + thread;
        float2* stats = reinterpret_cast<float2*>(params.plan.partial_stats) + row;
        constexpr u32 OUTPUT_STRIDE = CONSUMERS * CHUNKS * 128;
#pragma unroll
        for (u32 i = 0; i < CHUNKS; ++i) {
            outputs[slot.slot * OUTPUT_STRIDE + i * 128] = make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]);
        }
        if (lane % 4 == 0) {
            stats[slot.slot * BLOCK_Q] = make_float2(reference[0], sum[0]);
            stats[slot.slot * BLOCK_Q + 8] = make_float2(reference[1], sum[1]);
        }
        __threadfence();
        bar_sync(ALL_CONSUMERS, 256);
        if (warpgroup == 0 && thread == 0) {
            u32 before = atomicAdd(params.plan.arrived + slot.first, 1);
            shared.is_last_piece = before + 1 == slot.pieces;
            if (before + 1 == slot.pieces) params.plan.arrived[slot.first] = 0;
        }
        bar_sync(ALL_CONSUMERS, 256);
        if (!shared.is_last_piece) return false;
        __threadfence();

        auto is_piece = [&](u32 block) {
            Cut from = load_cut(params.plan.cuts, block), to = load_cut(params.plan.cuts, block + 1);
            return is_before(from, to);
        };
        float largest[2] = {-INFINITE, -INFINITE};
        for (u32 block = slot.first; block <= slot.last; ++block) {
            if (!is_piece(block)) continue;
            for (u32 r = 0; r < 2; ++r) {
                largest[r] = fmaxf(largest[r], __ldcg(stats + slot_of(block, slot.first) * BLOCK_Q + 8 * r).x);
            }
        }
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 2; ++i) o[i] = 0.0f;
        for (u32 r = 0; r < 2; ++r) {
            sum[r] = 0.0f;
            reference[r] = largest[r];
        }
        for (u32 block = slot.first; block <= slot.last; ++block) {
            if (!is_piece(block)) continue;
            u32 from = slot_of(block, slot.first);
            float factor[2];
            for (u32 r = 0; r < 2; ++r) {
                float2 piece = __ldcg(stats + from * BLOCK_Q + 8 * r);
                factor[r] = piece.x == largest[r] ? 1.0f : ex2_approx(piece.x - largest[r]);
                sum[r] = fmaf(piece.y, factor[r], sum[r]);
            }
#pragma unroll
            for (u32 i = 0; i < CHUNKS; ++i) {
                float4 part = __ldcg(outputs + from * OUTPUT_STRIDE + i * 128);
                o[4 * i] = fmaf(part.x, factor[0], o[4 * i]);
                o[4 * i + 1] = fmaf(part.y, factor[0], o[4 * i + 1]);
                o[4 * i + 2] = fmaf(part.z, factor[1], o[4 * i + 2]);
                o[4 * i + 3] = fmaf(part.w, factor[1], o[4 * i + 3]);
            }
        }
        return true;
    }

    // Normalises and writes the rows of this warpgroup, through its own rows of q so that threads write 16 bytes in a line.
    __device__ __forceinline__ void store(const Slot& slot, float (&o)[HEAD_DIM / 2], const float (&reference)[2], const float (&sum)[2]) {
        float inverse[2];
        u64 lse_row = (u64(slot.batch) * params.shape.heads + slot.head) * params.shape.q_tokens + slot.q_first;
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            inverse[r] = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
            if (params.lse != nullptr && lane % 4 == 0 && row + 8 * r < slot.q_rows) {
                params.lse[lse_row + row + 8 * r] = sum[r] == 0.0f ? -INFINITE : (reference[r] + lg2_approx(sum[r])) * LN_2;
            }
        }
        rescale(o, inverse);

        u8* rows = shared.q[q.stage] + 64 * 128 * warpgroup;
        u32 own = 16 * (thread / 32) + lane % 16;
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 16; ++i) {
            u32 chunk = 2 * i + lane / 16;
            u32 address = shared_address(rows) + chunk / 8 * PANEL_BYTES + own * 128 + ((chunk ^ own) % 8) * 16;
            const float* x = o + 8 * i;
            stmatrix_x4(address, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
        }
        bar_sync(WARPGROUP + warpgroup, 128);

        const Tensor4& out = params.out;
        u16* base = static_cast<u16*>(out.data) + slot.batch * out.batch_stride + slot.head * out.head_stride;
        constexpr u32 CHUNKS = HEAD_DIM / 8;
#pragma unroll
        for (u32 i = 0; i < 64 * CHUNKS / 128; ++i) {
            u32 local = i * (128 / CHUNKS) + thread / CHUNKS, chunk = thread % CHUNKS;
            if (64 * warpgroup + local >= slot.q_rows) break;
            const u8* from = rows + chunk / 8 * PANEL_BYTES + local * 128 + ((chunk ^ local) % 8) * 16;
            u16* to = base + (slot.q_first + 64 * warpgroup + local) * out.token_stride + chunk * 8;
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        }
    }
};

// ---------------------------------------------------------------------------------------------------------------------- fill

// Writes the rows that are not computed: zeros where a live q-block attends to nothing, the forecast where it is cached.
__device__ __forceinline__ void fill(const AttentionParams& params, u32 thread) {
    const Shape& shape = params.shape;
    const Tensor4& out = params.out;
    u32 rows = shape.batch * shape.heads * shape.q_blocks, count = __ldg(&params.plan.head->fill);
    for (u32 i = blockIdx.x; i < count; i += gridDim.x) {
        u32 item = __ldg(params.plan.order + rows - 1 - i);
        u32 q_block = item % shape.q_blocks, line = item / shape.q_blocks;
        u32 head = line % shape.heads, batch = line / shape.heads;
        u32 symbol_head = shape.symbol_batches == 1 ? head : line;
        const u64* cache = params.symbols.cache + u64(symbol_head) * ((shape.q_blocks + 63) / 64);
        bool is_cached = (__ldg(cache + q_block / 64) >> q_block % 64 & 1) == 0;
        u32 first = __ldg(params.symbols.q_start + q_block), end = __ldg(params.symbols.q_start + q_block + 1);
        for (u32 at = thread; at < (end - first) * (HEAD_DIM / 8); at += FILLERS) {
            u32 token = first + at / (HEAD_DIM / 8), column = at % (HEAD_DIM / 8) * 8;
            u64 place = u64(line) * shape.q_tokens + token;
            float x[8] = {};
            for (u32 term = 0; is_cached && term < params.forecast.count; ++term) {
                const float4* from = reinterpret_cast<const float4*>(params.forecast.terms[term] + place * HEAD_DIM + column);
                float weight = params.forecast.weights[term];
                float4 a = __ldg(from), b = __ldg(from + 1);
                x[0] = fmaf(a.x, weight, x[0]);
                x[1] = fmaf(a.y, weight, x[1]);
                x[2] = fmaf(a.z, weight, x[2]);
                x[3] = fmaf(a.w, weight, x[3]);
                x[4] = fmaf(b.x, weight, x[4]);
                x[5] = fmaf(b.y, weight, x[5]);
                x[6] = fmaf(b.z, weight, x[6]);
                x[7] = fmaf(b.w, weight, x[7]);
            }
            u16* to = static_cast<u16*>(out.data) + batch * out.batch_stride + head * out.head_stride + token * out.token_stride + column;
            *reinterpret_cast<uint4*>(to) = make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
            if (!is_cached && params.lse != nullptr && column == 0) params.lse[place] = -INFINITE;
        }
    }
}

// -------------------------------------------------------------------------------------------------------------------- kernel

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention(
    const __grid_constant__ AttentionParams params,
    const __grid_constant__ TensorMap q_map,
    const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map) {
    extern __shared__ __align__(1024) u8 memory[];
    SharedMemoryPlan& shared = *reinterpret_cast<SharedMemoryPlan*>(memory);
    u32 warpgroup = __shfl_sync(0xFFFFFFFF, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
        prefetch_tensormap(&q_map);
        prefetch_tensormap(&k_map);
        prefetch_tensormap(&v_map);
        auto init = [](u64* full, u64* empty, u32 count) {
            for (u32 i = 0; i < count; ++i) {
                mbarrier_init(shared_address(full + i), 1);
                mbarrier_init(shared_address(empty + i), CONSUMER_WARPS);
            }
        };
        init(shared.q_full, shared.q_empty, Q_STAGES);
        init(shared.k_full, shared.k_empty, STAGES);
        init(shared.v_full, shared.v_empty, STAGES);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warpgroup == 0) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) produce(shared, params, &q_map, &k_map, &v_map);
        if (threadIdx.x >= 32) fill(params, threadIdx.x - 32);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        Consumer(shared, params, threadIdx.x - 128).run();
    }
}
