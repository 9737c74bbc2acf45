// Fused attention under sparse symbols for Hopper (sm_90a): TMA, wgmma, specialised warps.
//
//     out[i] = sum_j p[i, j] v[j],   p[i, :] = softmax(scale * q[i] k[:]^T) over the keys that the symbols leave to row i
//
// q, out: [batch, heads, q_tokens, HEAD_DIM], k, v: [batch, kv_heads, kv_tokens, HEAD_DIM], bf16 or fp16, any strides;
// optionally lse [batch, heads, q_tokens] in f32. A q-block whose bit of S_c is 0 costs nothing and stays untouched, or is filled with
// its forecast; a kv-block whose bit of S_s is 0 is never loaded. What is live and who does it stands in the plan (plan.cu).
//
// A row of work has 128 queries in two halves of 64, one for each consumer: those of a q-block of up to 128 tokens, or two q-blocks of up to
// 64 (Q_BLOCK) that share the tiles which either attends to. For the other one these columns count as masked.
//
// Who does what, in one thread block of 384 threads per multiprocessor that stays for all of its work:
//   warpgroup 0, warp 0   producer: walks the bitmap of a row, loads q, k and v by TMA
//                warp 1   scheduler: finds out rows ahead where they lie and where their bitmaps begin, which takes longer than a tile
//                others   fill the rows that are not computed: zeros or the forecast
//   warpgroup 1 and 2     consumers: 64 rows each. While one computes weights, the other has the tensor cores (named
//                         barriers give turns), and within a warpgroup the scores of the next tile run beside the
//                         weighted sum of the last. Heads of 64 leave registers for scores of two tiles at a time
//
// Shared memory (bytes; HEAD_DIM 128 / 64):
//   q   3 stages of [128][HEAD_DIM]    98,304 / 49,152   one of the next row, one in use, one whose output leaves from where q was
//   k   STAGES of [128][HEAD_DIM]      65,536 / 65,536
//   v   STAGES of [128][HEAD_DIM]      65,536 / 65,536
//   barriers, rows, tile notes            < 1,024
// Each array is in panels of 64 columns: [panel][128 rows][128 bytes], swizzled by 128 bytes as TMA and wgmma expect.
//
// Measured on an H200 at its power limit, bf16, 24 heads, TFLOP/s on live blocks (docs/performance.md):
//                      4,608 tokens   16,896   33,024   118,800      of FlashAttention-4 in the same run
//   128   dense            700          712      743       656       1.09   1.00   1.04   1.00
//         s = 0.75         621          687      680       619       1.22   1.10   1.03   1.07
//   64    dense            489          508      505       497       1.02   0.89   0.89   0.91
//         s = 0.75         444          494      502       521       1.27   1.14   1.11   1.16
//
// Source: FlashAttention-3 (arXiv 2407.08608) for the division of work and the overlap; FlashOmni (arXiv 2509.25401) for the symbols.
#include "attention/config.cuh"
#include "attention/fill.cuh"
#include "attention/masks.cuh"
#include "attention/softmax.cuh"
#include "common/hopper.cuh"
#include "common/symbols.cuh"
#include "common/work.cuh"
#include "params.cuh"

#if __CUDA_ARCH__ != 900 || !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "this file is for sm_90a"
#endif

constexpr u32 CONSUMERS = 2;
constexpr u32 THREADS = 128 * (1 + CONSUMERS);
constexpr u32 CONSUMER_WARPS = 4 * CONSUMERS;
constexpr u32 FILLERS = 64;
constexpr u32 Q_STAGES = 3;
constexpr u32 SLOTS = 4; // rows between the scheduler and the end of consumers' work on them
constexpr u32 STAGES = HEAD_DIM == 128 ? 2 : 4;
constexpr u32 PANELS = HEAD_DIM / 64;
constexpr u32 PANEL_BYTES = TILE * 128;
constexpr u32 STAGE_BYTES = PANELS * PANEL_BYTES;

// Registers of a thread. All together they fit what the launch allocates, 384 * 168.
constexpr u32 PRODUCER_REGISTERS = 56;
constexpr u32 CONSUMER_REGISTERS = 224;
static_assert(128 * PRODUCER_REGISTERS + 256 * CONSUMER_REGISTERS <= 384 * 168, "the registers of one thread block");

// Tiles whose scores are there at a time.
constexpr u32 SCORES = HEAD_DIM == 128 ? 1 : 2;

// Of the 16 groups of 8 columns of a tile, those whose exponentials are due before the last sum must be done.
constexpr u32 FIRST_PART = SCORES == 1 ? 4 : 8;
// And those before the output of an ended row is sent: they give its staging time to be seen.
constexpr u32 SENDING_PART = 12;

// Tiles of a row after which the producer loads the next q: the last had to wait for consumers to go on from the row before, so that
// its stage is free.
constexpr u32 Q_AHEAD = STAGES + 1;

// Named barriers; 0 is __syncthreads.
constexpr u32 TURN = 1;      // and 2: the turn of each consumer warpgroup
constexpr u32 WARPGROUP = 3; // and 4: the threads of one consumer warpgroup

// A row on its way. No tiles: there is no more work.
struct alignas(16) Slot {
    u32 batch;
    u32 head;
    u32 q_first[Q_PARTS]; // of each q-block
    u32 q_rows[Q_PARTS];
    u32 kv_head;
    Piece piece;
    TileWalk tiles; // from the first on
};

struct SharedMemoryPlan {
    u8 q[Q_STAGES][STAGE_BYTES];
    u8 k[STAGES][STAGE_BYTES];
    u8 v[STAGES][STAGE_BYTES];
    u64 q_full[Q_STAGES], q_empty[Q_STAGES];
    u64 k_full[STAGES], k_empty[STAGES];
    u64 v_full[STAGES], v_empty[STAGES];
    u64 slot_full[SLOTS], slot_empty[SLOTS];
    Slot slots[SLOTS];
    TileNote notes[STAGES][Q_PARTS];
};
static_assert(SLOTS > Q_STAGES, "the scheduler is ahead of the producer");
static_assert(sizeof(SharedMemoryPlan) <= 232448, "the shared memory of one thread block");
#ifdef OMNI_SHARED_BYTES
static_assert(sizeof(SharedMemoryPlan) <= OMNI_SHARED_BYTES, "the shared memory that the host launches with");
#endif

// ----------------------------------------------------------------------------------------------------------------- scheduler

// The tokens of a q-block.
__device__ __forceinline__ void place_part(const AttentionParams& params, Slot& slot, u32 part, u32 q_block) {
    u32 first = MASKS ? __ldg(params.symbols.q_start + q_block) : q_block * BLOCK_Q;
    u32 end = MASKS ? __ldg(params.symbols.q_start + q_block + 1) : min(first + BLOCK_Q, params.shape.q_tokens);
    slot.q_first[part] = first;
    slot.q_rows[part] = end - first;
}

// Describes the pieces of this thread block's work one after another, as far ahead as there are slots.
__device__ __forceinline__ void schedule(SharedMemoryPlan& shared, const AttentionParams& params) {
    const Shape& shape = params.shape;
    Work work(params.plan, blockIdx.x);
    Ring<SLOTS> rows;
    for (Piece piece; work.next(piece); rows.advance()) {
        u32 q_block = piece.row % shape.q_blocks, row = piece.row / shape.q_blocks;
        u32 head = row % shape.heads, batch = row / shape.heads;
        u32 line = shape.symbol_batches == 1 ? head : row;
        u32 other = q_block;
        if (Q_PARTS > 1) {
            other = first_one_behind(params.symbols.cache + u64(line) * ((shape.q_blocks + 63) / 64), q_block, shape.q_blocks);
            if (other == shape.q_blocks) other = q_block; // the last is alone
        }
        TileWalk tiles(params, line * shape.q_blocks + q_block, other - q_block, piece.begin);
        mbarrier_wait(shared_address(&shared.slot_empty[rows.stage()]), rows.phase() ^ 1);
        Slot& slot = shared.slots[rows.stage()];
        slot.batch = batch;
        slot.head = head;
        slot.kv_head = head / (shape.heads / shape.kv_heads);
        slot.piece = piece;
        slot.tiles = tiles;
        place_part(params, slot, 0, q_block);
        if constexpr (Q_PARTS > 1) {
            if (other != q_block) {
                place_part(params, slot, 1, other);
            } else {
                slot.q_first[1] = shape.q_tokens; // loads zeros
                slot.q_rows[1] = 0;
            }
        }
        mbarrier_arrive(shared_address(&shared.slot_full[rows.stage()]));
    }
    mbarrier_wait(shared_address(&shared.slot_empty[rows.stage()]), rows.phase() ^ 1);
    shared.slots[rows.stage()].piece.count = 0;
    mbarrier_arrive(shared_address(&shared.slot_full[rows.stage()]));
}

// ------------------------------------------------------------------------------------------------------------------ producer

// Loads a box of rows of all panels, from token `token` on, to row `at` of a stage.
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
        load_rows(stage, part * KV_BLOCK, map, barrier, tile.token[part], head, batch, EVICT_LAST);
    }
}

struct Producer {
    SharedMemoryPlan& shared;
    const AttentionParams& params;
    const TensorMap *q_map, *k_map, *v_map;
    u32 rows = 0; // whose q is loaded
    Ring<STAGES> k, v;

    __device__ __forceinline__ void run() {
        for (const Slot* slot = load_q(); slot->piece.count > 0;) {
            const Slot* next = slot;
            TileWalk tiles = slot->tiles;
            u32 count = slot->piece.count, head = slot->kv_head, batch = slot->batch;
            // v stays one tile behind k, as it is needed.
            Tile last;
#pragma unroll 1
            for (u32 n = 0; n <= count; ++n) {
                Tile tile;
                if (n < count) {
                    tile = tiles.next(params);
                    mbarrier_wait(shared_address(&shared.k_empty[k.stage()]), k.phase() ^ 1);
#pragma unroll
                    for (u32 part = 0; part < Q_PARTS; ++part) shared.notes[k.stage()][part] = tile.note[part];
                    load_tile(shared.k[k.stage()], k_map, &shared.k_full[k.stage()], tile, head, batch);
                    k.advance();
                }
                if (n > 0) {
                    mbarrier_wait(shared_address(&shared.v_empty[v.stage()]), v.phase() ^ 1);
                    load_tile(shared.v[v.stage()], v_map, &shared.v_full[v.stage()], last, head, batch);
                    v.advance();
                }
                if (n == min(Q_AHEAD, count)) next = load_q();
                last = tile;
            }
            slot = next;
        }
    }

    // Loads q of the next row, or announces that there is none.
    __device__ __forceinline__ const Slot* load_q() {
        Ring<Q_STAGES> q{rows};
        Ring<SLOTS> row{rows};
        const Slot& slot = shared.slots[row.stage()];
        u64* barrier = &shared.q_full[q.stage()];
        mbarrier_wait(shared_address(&shared.slot_full[row.stage()]), row.phase());
        mbarrier_wait(shared_address(&shared.q_empty[q.stage()]), q.phase() ^ 1);
        // Consumers are done with the row that was in this stage.
        if (rows >= Q_STAGES) mbarrier_arrive(shared_address(&shared.slot_empty[Ring<SLOTS>{rows - Q_STAGES}.stage()]));
        ++rows;
        if (slot.piece.count == 0) {
            mbarrier_arrive(shared_address(barrier));
        } else {
            mbarrier_arrive_expect_tx(shared_address(barrier), STAGE_BYTES);
#pragma unroll
            for (u32 part = 0; part < Q_PARTS; ++part) {
                load_rows(shared.q[q.stage()], Q_BLOCK * part, q_map, barrier, slot.q_first[part], slot.head, slot.batch, EVICT_FIRST);
            }
        }
        return &slot;
    }
};

// ------------------------------------------------------------------------------------------------------------------ consumers

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

struct Consumer {
    SharedMemoryPlan& shared;
    const AttentionParams& params;
    const TensorMap* out_map;
    u32 warpgroup; // 0 or 1
    u32 thread;    // within the warpgroup
    u32 lane;
    u32 row;      // first of this thread's two rows of work; the other is 8 below
    u32 rows = 0; // whose scores are all done
    Ring<STAGES> k, v;

    __device__ __forceinline__ Consumer(
        SharedMemoryPlan& shared, const AttentionParams& params, const TensorMap* out_map, u32 warpgroup)
        : shared(shared), params(params), out_map(out_map), warpgroup(warpgroup), thread(threadIdx.x % 128), lane(threadIdx.x % 32) {
        row = 64 * warpgroup + 16 * (thread / 32) + lane / 4;
    }

    // Waits for the next row; its number of tiles, 0 when there is none.
    __device__ __forceinline__ u32 next_row() {
        Ring<Q_STAGES> q{rows};
        mbarrier_wait(shared_address(&shared.q_full[q.stage()]), q.phase());
        return same_in_warp(shared.slots[Ring<SLOTS>{rows}.stage()].piece.count);
    }

    // One stream of tiles through all rows: where a row ends, the first scores of the next run beside its last sum as anywhere else.
    __device__ __forceinline__ void run() {
        Tiles t(params.scale_log2);
        // The first warpgroup begins.
        if (warpgroup == 1) bar_arrive(TURN, 256);
        u32 tiles = next_row(), tile = 0;
        if (tiles == 0) return;
        wait_k();
        scores(t.s[0]);
        TileNote note = next_note();
        wgmma_wait_group<0>();
        finish_scores(t, t.s[0], true, note);
        t.softmax.raise(t.s[0], t.factor);
        t.softmax.weigh<0, 16>(t.s[0]);
        pack_weights(t.p, t.s[0]);
        for (;;) {
            if (SCORES == 2 && tile + 2 < tiles) {
                step_two(t, tile > 0);
                tile += 2;
                continue;
            }
            if (tile + 1 < tiles) {
                step<false>(t, tile > 0);
                ++tile;
                continue;
            }
            rows = same_in_warp(rows + 1);
            tiles = next_row();
            if (tiles == 0) break;
            step<true>(t, tile > 0);
            tile = 0;
        }
        wait_v();
        sum(t, tile > 0);
        finish_sum<0>(t);
        finish_row(t.o, t.softmax);
        send_row();
        cp_async_bulk_wait_group_read<0>();
    }

    // What a thread holds of a row: weights of one tile, whose sum is due, and scores of the next ones.
    struct Tiles {
        float o[HEAD_DIM / 2];
        float s[SCORES][64];
        u32 p[32];
        float factor[2];
        Softmax softmax;

        __device__ __forceinline__ Tiles(float scale) : softmax(scale) {}
    };

    // The sum of one tile beside the scores of the next, which is the first of another row where a row ENDS.
    template <bool ENDS>
    __device__ __forceinline__ void step(Tiles& t, bool accumulate) {
        float (&s)[64] = t.s[0];
        wait_k();
        bar_sync(TURN + warpgroup, 256);
        scores(s);
        wait_v();
        sum(t, accumulate);
        bar_arrive(TURN + (warpgroup ^ 1), 256);
        TileNote note = next_note();
        wgmma_wait_group<1>();
        finish_scores(t, s, MASKS || ENDS, note);
        Softmax done = t.softmax;
        if (ENDS) t.softmax.reset();
        bool rescales = t.softmax.raise(s, t.factor);
        t.softmax.weigh<0, FIRST_PART>(s);
        keep_behind<4 * FIRST_PART>(s);
        finish_sum<0>(t);
        if (ENDS) {
            finish_row(t.o, done);
            t.softmax.weigh<FIRST_PART, SENDING_PART>(s);
            keep_behind<4 * SENDING_PART>(s);
            if (rows > 1) free_row();
            send_row();
        }
        // Twice the same but for the rescaling: it fills slots that exponentials leave, as conversions and sums do, and would keep
        // them apart in a branch of its own.
        if (!ENDS && rescales) {
            keep_apart();
            rescale(t.o, t.factor);
            t.softmax.weigh<FIRST_PART, 16>(s);
            pack_weights(t.p, s);
            keep_apart();
        } else {
            t.softmax.weigh<ENDS ? SENDING_PART : FIRST_PART, 16>(s);
            pack_weights(t.p, s);
        }
    }

    // Two tiles of the same row: the scores of the second run beside the weights of the first, so that tensor cores have as much to do as
    // the exponentials of a head of 64 take.
    __device__ __forceinline__ void step_two(Tiles& t, bool accumulate) {
        wait_k();
        bar_sync(TURN + warpgroup, 256);
        scores(t.s[0]);
        wait_v();
        sum(t, accumulate);
        wait_k(1);
        scores(t.s[SCORES - 1], 1);
        bar_arrive(TURN + (warpgroup ^ 1), 256);
        weigh_one<2, 1>(t, t.s[0]);
        wait_v();
        sum(t, true);
        weigh_one<1, 0>(t, t.s[SCORES - 1]);
    }

    // Scores become weights, and the sum follows them without a branch between wgmmas. The scores are there when PENDING groups are under
    // way, the sum when PENDING_SUM are.
    template <u32 PENDING, u32 PENDING_SUM>
    __device__ __forceinline__ void weigh_one(Tiles& t, float (&s)[64]) {
        TileNote note = next_note();
        wgmma_wait_group<PENDING>();
        finish_scores(t, s, MASKS, note);
        t.softmax.follow(s, t.factor);
        t.softmax.weigh<0, FIRST_PART>(s);
        keep_behind<4 * FIRST_PART>(s);
        finish_sum<PENDING_SUM>(t);
        rescale(t.o, t.factor);
        t.softmax.weigh<FIRST_PART, 16>(s);
        pack_weights(t.p, s);
    }

    // Waits for the keys of the next tile, or of one `ahead` of it.
    __device__ __forceinline__ void wait_k(u32 ahead = 0) {
        Ring<STAGES> at{k.turns + ahead};
        mbarrier_wait(shared_address(&shared.k_full[at.stage()]), at.phase());
    }

    // The q-block of this warpgroup's rows, and where it has one of them.
    __device__ __forceinline__ u32 part() const {
        return Q_PARTS == 1 ? 0 : warpgroup;
    }
    __device__ __forceinline__ static u32 of_block(u32 row) {
        return Q_PARTS == 1 ? row : row % Q_BLOCK;
    }

    // What it must know of the tile whose scores are due.
    __device__ __forceinline__ TileNote next_note() const {
        return shared.notes[k.stage()][part()];
    }

    __device__ __forceinline__ void wait_v() {
        mbarrier_wait(shared_address(&shared.v_full[v.stage()]), v.phase());
    }

    __device__ __forceinline__ void scores(float (&s)[64], u32 ahead = 0) {
        u64 q = descriptor(shared.q[Ring<Q_STAGES>{rows}.stage()] + 64 * 128 * warpgroup, 16, 1024);
        start_scores(s, q, descriptor(shared.k[Ring<STAGES>{k.turns + ahead}.stage()], 16, 1024));
    }

    __device__ __forceinline__ void sum(Tiles& t, bool accumulate) {
        start_sum(t.o, t.p, descriptor(shared.v[v.stage()], PANEL_BYTES, 1024), accumulate);
    }

    __device__ __forceinline__ void finish_scores(Tiles& t, float (&s)[64], bool may_be_masked, const TileNote& note) {
        keep_behind<64>(s);
        if (may_be_masked) apply_note(s, note, params.symbols.tiles, of_block(row), lane % 4);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            if (Q_PARTS > 1) t.softmax.left_out[half] = note.columns[half] == 0 ? -INFINITE : 0.0f;
        }
        __syncwarp(); // lane 0 speaks for all: the note may be overwritten from here on
        release(&shared.k_empty[k.stage()], lane);
        k.advance();
    }

    template <u32 PENDING>
    __device__ __forceinline__ void finish_sum(Tiles& t) {
        wgmma_wait_group<PENDING>();
        keep_behind<HEAD_DIM / 2>(t.o);
        release(&shared.v_empty[v.stage()], lane);
        v.advance();
    }

    __device__ __forceinline__ void rescale(float (&o)[HEAD_DIM / 2], const float (&factor)[2]) {
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 2; ++i) o[i] *= factor[i / 2 % 2];
    }

    // The output of the row before, whose tiles are all done, to where it waits to be sent: its own q.
    __device__ __forceinline__ void finish_row(float (&o)[HEAD_DIM / 2], const Softmax& softmax) {
        const Slot& slot = shared.slots[Ring<SLOTS>{rows - 1}.stage()];
        // What exponents are counted from, in powers of two.
        float reference[2] = {softmax.reference[0] * softmax.scale, softmax.reference[1] * softmax.scale};
        float sum[2] = {quad_sum(softmax.sum[0]), quad_sum(softmax.sum[1])};
        bool is_divided = slot.piece.slot != WHOLE, begins = slot.piece.begin == 0;
        if (is_divided && begins) gather(slot.piece, o, reference, sum);
        if (begins) {
            stage(slot, o, reference, sum);
        } else {
            leave(slot.piece, o, reference, sum);
        }
    }

    // Sends off what finish_row has staged; to order it before what the copy engine reads takes time, which exponentials fill.
    __device__ __forceinline__ void send_row() {
        const Slot& slot = shared.slots[Ring<SLOTS>{rows - 1}.stage()];
        u32 batch = same_in_warp(slot.batch), head = same_in_warp(slot.head), q_first = same_in_warp(slot.q_first[part()]);
        u32 first = first_row_of_warp();
        u8* from = shared.q[Ring<Q_STAGES>{rows - 1}.stage()] + 128 * first;
        fence_proxy_async();
        __syncwarp();
        bool is_ours = slot.piece.begin == 0; // not left to the thread block that began the row
        first = of_block(first);
        if (MASKS && first + 16 > slot.q_rows[part()]) {
            if (is_ours) copy_rows(slot, first, from);
        } else if (is_ours && lane == 0) {
#pragma unroll
            for (u32 panel = 0; panel < PANELS; ++panel) {
                u32 address = shared_address(from) + panel * PANEL_BYTES;
                cp_async_bulk_tensor_store_4d(out_map, address, panel * 64, q_first + first, head, batch);
            }
            cp_async_bulk_commit_group();
        }
    }

    // Gives the stage of the last row that was sent to another q.
    __device__ __forceinline__ void free_row() {
        cp_async_bulk_wait_group_read<0>();
        __syncwarp(); // lane 0 speaks for all, who have read the slot
        release(&shared.q_empty[Ring<Q_STAGES>{rows - 2}.stage()], lane);
    }

    // The first of the 16 rows of work that a warp has in its accumulators.
    __device__ __forceinline__ u32 first_row_of_warp() const {
        return same_in_warp(64 * warpgroup + 16 * (thread / 32));
    }

    // Places of this thread in the workspace, [slot][warpgroup][i / 4][thread][4] in the order of accumulators, and [slot][row].
    static constexpr u32 CHUNKS = HEAD_DIM / 8;
    static constexpr u32 OUTPUT_STRIDE = CONSUMERS * CHUNKS * 128;
    __device__ __forceinline__ float4* partial_out(u32 slot) const {
        return reinterpret_cast<float4*>(params.plan.partial_out) + slot * OUTPUT_STRIDE + warpgroup * CHUNKS * 128 + thread;
    }
    __device__ __forceinline__ float2* partial_stats(u32 slot) const {
        return reinterpret_cast<float2*>(params.plan.partial_stats) + slot * BLOCK_Q + row;
    }

    // Leaves a piece of a divided row to the thread block that began the row, and does not wait for it.
    __device__ __forceinline__ void leave(
        const Piece& piece, const float (&o)[HEAD_DIM / 2], const float (&reference)[2], const float (&sum)[2]) {
        float4* outputs = partial_out(piece.slot);
#pragma unroll
        for (u32 i = 0; i < CHUNKS; ++i) {
            __stcg(outputs + i * 128, make_float4(o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]));
        }
        if (lane % 4 == 0) {
            __stcg(partial_stats(piece.slot), make_float2(reference[0], sum[0]));
            __stcg(partial_stats(piece.slot) + 8, make_float2(reference[1], sum[1]));
        }
        bar_sync(WARPGROUP + warpgroup, 128);
        if (thread == 0) red_release_gpu_add(params.plan.arrived + 2 * piece.first + warpgroup, 1);
    }

    // Adds the pieces of the others to that of the thread block that began the row, in order: the result does not depend on who came
    // when. They do theirs before anything else and wait for no one before that, so this waits in rare cases only, and never for ever.
    __device__ __forceinline__ void gather(
        const Piece& piece, float (&o)[HEAD_DIM / 2], float (&reference)[2], float (&sum)[2]) {
        u32* arrived = params.plan.arrived + 2 * piece.first + warpgroup;
        if (thread == 0) {
            while (ld_acquire_gpu(arrived) + 1 < piece.pieces) {
            }
            *arrived = 0;
        }
        bar_sync(WARPGROUP + warpgroup, 128);
        for (u32 block = piece.first + 1; block <= piece.last; ++block) {
            if (!is_before(load_cut(params.plan.cuts, block), load_cut(params.plan.cuts, block + 1))) continue;
            const float4* outputs = partial_out(slot_of(block, piece.first));
            const float2* stats = partial_stats(slot_of(block, piece.first));
            float own[2], other[2];
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                float2 part = __ldcg(stats + 8 * r);
                float largest = fmaxf(reference[r], part.x);
                // Rows that attended to nothing so far have minus infinity on both sides.
                own[r] = reference[r] == largest ? 1.0f : ex2_approx(reference[r] - largest);
                other[r] = part.x == largest ? 1.0f : ex2_approx(part.x - largest);
                reference[r] = largest;
                sum[r] = fmaf(part.y, other[r], sum[r] * own[r]);
            }
#pragma unroll
            for (u32 i = 0; i < CHUNKS; ++i) {
                float4 part = __ldcg(outputs + i * 128);
                o[4 * i] = fmaf(part.x, other[0], o[4 * i] * own[0]);
                o[4 * i + 1] = fmaf(part.y, other[0], o[4 * i + 1] * own[0]);
                o[4 * i + 2] = fmaf(part.z, other[1], o[4 * i + 2] * own[1]);
                o[4 * i + 3] = fmaf(part.w, other[1], o[4 * i + 3] * own[1]);
            }
        }
    }

    // Normalises the rows of this warp and leaves them in its place in q.
    __device__ __forceinline__ void stage(
        const Slot& slot, float (&o)[HEAD_DIM / 2], const float (&reference)[2], const float (&sum)[2]) {
        float inverse[2];
        bool is_empty[2];
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            // Nobody may have made the queries of a block that attends to nothing, and the other of a pair has tiles all the same: its
            // weights and sums may be NaN.
            is_empty[r] = Q_PARTS == 1 ? sum[r] == 0.0f : reference[r] == -INFINITE;
            inverse[r] = is_empty[r] ? 0.0f : rcp_approx(sum[r]);
        }
        rescale(o, inverse);
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 2; ++i) {
            if (Q_PARTS > 1 && is_empty[i / 2 % 2]) o[i] = 0.0f;
        }
        bar_sync(WARPGROUP + warpgroup, 128); // a product of the warpgroup may read all of its rows, and all have waited for theirs
        u32 to = shared_address(shared.q[Ring<Q_STAGES>{rows - 1}.stage()]) + 128 * first_row_of_warp();
#pragma unroll
        for (u32 i = 0; i < HEAD_DIM / 16; ++i) {
            u32 own = lane % 16, chunk = 2 * i + lane / 16;
            u32 address = to + chunk / 8 * PANEL_BYTES + own * 128 + ((chunk ^ own) % 8) * 16;
            const float* x = o + 8 * i;
            stmatrix_x4(address, pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
        }
        if (params.lse != nullptr && lane % 4 == 0) {
            float* lse = params.lse + (u64(slot.batch) * params.shape.heads + slot.head) * params.shape.q_tokens + slot.q_first[part()];
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                float value = is_empty[r] ? -INFINITE : (reference[r] + lg2_approx(sum[r])) * LN_2;
                if (of_block(row) + 8 * r < slot.q_rows[part()]) lse[of_block(row) + 8 * r] = value;
            }
        }
    }

    // The rows of an irregular q-block that has fewer than those of this warp: a box would write beyond it.
    __device__ __forceinline__ void copy_rows(const Slot& slot, u32 first, const u8* staged) {
        const Tensor4& out = params.out;
        u16* base = static_cast<u16*>(out.data) + slot.batch * out.batch_stride + slot.head * out.head_stride;
#pragma unroll 1
        for (u32 at = lane; at < 16 * CHUNKS; at += 32) {
            u32 local = at / CHUNKS, chunk = at % CHUNKS;
            if (first + local >= slot.q_rows[part()]) break;
            const u8* from = staged + chunk / 8 * PANEL_BYTES + local * 128 + ((chunk ^ local) % 8) * 16;
            u16* to = base + (slot.q_first[part()] + first + local) * out.token_stride + chunk * 8;
            *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
        }
    }
};

// -------------------------------------------------------------------------------------------------------------------- kernel

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention(
    const __grid_constant__ AttentionParams params,
    const __grid_constant__ TensorMap q_map,
    const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map,
    const __grid_constant__ TensorMap out_map) {
    extern __shared__ __align__(1024) u8 memory[];
    SharedMemoryPlan& shared = *reinterpret_cast<SharedMemoryPlan*>(memory);
    u32 warpgroup = same_in_warp(threadIdx.x / 128);
    if (threadIdx.x == 0) {
        prefetch_tensormap(&q_map);
        prefetch_tensormap(&k_map);
        prefetch_tensormap(&v_map);
        prefetch_tensormap(&out_map);
        auto init = [](u64* full, u64* empty, u32 count, u32 readers) {
            for (u32 i = 0; i < count; ++i) {
                mbarrier_init(shared_address(full + i), 1);
                mbarrier_init(shared_address(empty + i), readers);
            }
        };
        init(shared.q_full, shared.q_empty, Q_STAGES, CONSUMER_WARPS);
        init(shared.k_full, shared.k_empty, STAGES, CONSUMER_WARPS);
        init(shared.v_full, shared.v_empty, STAGES, CONSUMER_WARPS);
        init(shared.slot_full, shared.slot_empty, SLOTS, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (warpgroup == 0) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) Producer{shared, params, &q_map, &k_map, &v_map}.run();
        if (threadIdx.x == 32) schedule(shared, params);
        if (threadIdx.x >= 64) fill(params, threadIdx.x - 64, FILLERS);
    } else {
        setmaxnreg_inc<CONSUMER_REGISTERS>();
        Consumer(shared, params, &out_map, warpgroup - 1).run();
    }
}
