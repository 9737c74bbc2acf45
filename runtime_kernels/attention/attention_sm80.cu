// Attention under sparse symbols for sm_80 and newer, with the instructions that all of them have: mma.sync, ldmatrix, cp.async.
//
//   out[b, h, i] = sum over j of p[j] v[b, h', j] / sum over j of p[j],    p[j] = exp(scale * q[b, h, i] . k[b, h', j])
//   lse[b, h, i] = log(sum over j of p[j]),    h' = h / (heads / kv_heads)
//
//   in    q [batch, heads, q_tokens, head_dim], k and v [batch, kv_heads, kv_tokens, head_dim], bf16 or fp16; a positive scale
//   out   out [batch, heads, q_tokens, head_dim] in the type of q, lse [batch, heads, q_tokens] f32 if wanted
//
// What the symbols skip: rows (a q-block of a head) whose S_c is 0 are not in the plan. Of a row's kv-blocks only those of S_s are
// loaded and multiplied; those of S_p under their token mask. Rows without anything to attend to become zeros, cached ones
// the forecast, if there is one, both by `fill` after all other work.
//
// Who does what: a persistent grid of plan.ctas thread blocks, each with its share of rows from work.cuh. The 128 queries of a
// row are divided among the warps, 32 each (16 on devices with little shared memory). All warps load; thread 0 also
// decodes the symbols, two tiles ahead of the loads. A tile of 128 keys is walked in two steps of 64:
//
//   wait for K, barrier, load ahead, S = Q K^T, mask, softmax       wait for V, barrier, load ahead, O += P V
//
// K and V share one ring of buffers. The loads of the next row start before this row's output is stored. Two or more thread
// blocks share a multiprocessor, so that the tensor cores have work while one of them is in its softmax.
//
// 32 queries a warp are what the bandwidth of shared memory asks for: every fragment of keys or values then feeds two products.
// The running maximum is only moved when it has grown by more than 8 (base 2), so that the accumulators are almost never
// rescaled; weights stay below 2^8, which every type holds.
//
// | head_dim | devices           | warps | buffers  | shared memory       | blocks per multiprocessor |
// |----------|-------------------|-------|----------|---------------------|---------------------------|
// | 128      | 8.0, 8.7          | 4     | 3 x 16 K | 80.5 KiB (82,432)   | 2                         |
// | 128      | 8.6 to 8.9, 12.x  | 8     | 4 x 16 K | 96.5 KiB (98,816)   | 1                         |
// | 128      | 9.0, 10.x, 11.0   | 4     | 4 x 16 K | 96.5 KiB (98,816)   | 2                         |
// | 64       | 8.0, 8.7, 9.0     | 4     | 4 x 8 K  | 48.5 KiB (49,664)   | 3                         |
// | 64       | all others        | 4     | 4 x 8 K  | 48.5 KiB (49,664)   | 2                         |
//
// Measured on an H200, bf16, 24 heads, 16,896 tokens: 378 TFLOP/s dense with head_dim 128 (FlashAttention-2: 361), 324 with 64 (317);
// with three of four blocks skipped 98% and 95% of that on live blocks (docs/performance.md).
//
// Memory plan: Q, later the output on its way out, 128 x head_dim x 2 bytes; buffers, 64 x head_dim x 2 bytes each; 512 bytes
// of control. Rows are split into 16-byte chunks, and chunk c of row r lies at c ^ (r % 8), so that neither ldmatrix nor
// stores meet bank conflicts.
#include "attention/config.cuh"
#include "attention/fill.cuh"
#include "attention/masks.cuh"
#include "common/math.cuh"
#include "common/ptx.cuh"
#include "common/ptx_sm80.cuh"
#include "common/work.cuh"
#include "params.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mma.sync of bf16 and cp.async need sm_80 or newer"
#endif

#if (__CUDA_ARCH__ >= 860 && __CUDA_ARCH__ < 900 && __CUDA_ARCH__ != 870) || __CUDA_ARCH__ >= 1200
constexpr bool LITTLE_SHARED_MEMORY = true; // 100 KiB
#else
constexpr bool LITTLE_SHARED_MEMORY = false;
#endif
// The first line of the table.
#if __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 870
constexpr u32 STAGES = HEAD_DIM == 128 ? 3 : 4; // two thread blocks within 164 KiB
#else
constexpr u32 STAGES = 4;
#endif
constexpr u32 WARPS = LITTLE_SHARED_MEMORY && HEAD_DIM == 128 ? 8 : 4;
// Decides how many registers a thread gets. A third thread block of 10.x and later would spill a few.
#if __CUDA_ARCH__ >= 1000
constexpr u32 MOST_BLOCKS = 2;
#else
constexpr u32 MOST_BLOCKS = HEAD_DIM == 64 ? 3 : 2;
#endif
constexpr u32 BLOCKS_PER_SM = !LITTLE_SHARED_MEMORY ? MOST_BLOCKS : HEAD_DIM == 64 ? 2 : 1;
constexpr u32 THREADS = WARPS * 32;

constexpr u32 STEP = 64; // keys of a step
constexpr u32 STEPS_PER_TILE = TILE / STEP;
constexpr u32 ENTRIES = 4 * STEPS_PER_TILE; // two tiles ahead, and one that is in use
constexpr u32 ROWS = BLOCK_Q / WARPS; // queries of a warp
constexpr u32 M_TILES = ROWS / 16;
constexpr u32 S_TILES = STEP / 8;
constexpr u32 O_TILES = HEAD_DIM / 8;

constexpr u32 ROW_BYTES = HEAD_DIM * 2;
constexpr u32 CHUNKS = ROW_BYTES / 16; // of a row
constexpr u32 Q_BYTES = BLOCK_Q * ROW_BYTES;
constexpr u32 STAGE_BYTES = STEP * ROW_BYTES;

constexpr float SLACK = 8.0f; // growth of a maximum that is put up with

// The keys of one step.
struct Entry {
    u32 token;
    u32 tokens; // 0: nothing to do
    u32 mask;   // as in TileNote
};

// A piece of a row, with its place in the tensors.
struct Job {
    Piece piece;
    u32 batch;
    u32 head;
    u32 q_token;
    u32 q_tokens;
    u32 steps;   // 0: no work is left
    const u8* k; // token 0 of the kv-head
    const u8* v;
};

// Shared by the thread block. What only thread 0 needs is here as well: registers would be taken from all threads.
struct Control {
    Entry entries[ENTRIES];
    Job jobs[2]; // the one whose loads have begun last, at `current`, and the one before
    u64 work[7]; // what thread 0 does next, a Work
    u64 walk[6]; // where thread 0 is in the row's tiles, a TileWalk
    u32 current;
    u32 is_last; // this thread block was the last to finish a divided row
};
static_assert(sizeof(Control) <= 512, "the memory plan above");
static_assert(sizeof(Work) <= sizeof(Control::work), "room for the position in the work");
static_assert(sizeof(TileWalk) <= sizeof(Control::walk), "room for the position in the tiles");

// What a warp accumulates: lane l holds the columns 2 (l % 4) and 2 (l % 4) + 1 of every 8, in the rows l / 4 and l / 4 + 8 of
// every 16.
struct Accumulators {
    float out[M_TILES][O_TILES][4];
    float max[M_TILES][2]; // base 2, scaled, the same in the four lanes of a row
    float sum[M_TILES][2]; // of this lane's columns only
};

__device__ __forceinline__ u32 swizzled(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ (row % 8)) * 16); }

__device__ __forceinline__ const u8* row_of(const Tensor4& tensor, u32 batch, u32 head, u32 token) {
    return static_cast<const u8*>(tensor.data)
        + 2 * (batch * tensor.batch_stride + head * tensor.head_stride + token * tensor.token_stride);
}

__device__ __forceinline__ u8* row_of_out(const Tensor4& tensor, u32 batch, u32 head, u32 token) {
    return const_cast<u8*>(row_of(tensor, batch, head, token));
}

__device__ __forceinline__ u64 lse_index(const Shape& shape, u32 batch, u32 head, u32 token) {
    return (u64(batch) * shape.heads + head) * shape.q_tokens + token;
}

// ------------------------------------------------------------------------------------------------------ symbols, by thread 0

// Where a row lies: batch, head, tokens.
__device__ __forceinline__ void place_row(const AttentionParams& params, u32 row, Job& job) {
    const Shape& shape = params.shape;
    const u32 q_block = row % shape.q_blocks;
    const u32 batch_and_head = row / shape.q_blocks;
    job.head = batch_and_head % shape.heads;
    job.batch = batch_and_head / shape.heads;
#if OMNI_MASKS
    job.q_token = __ldg(params.symbols.q_start + q_block);
    job.q_tokens = __ldg(params.symbols.q_start + q_block + 1) - job.q_token;
#else
    job.q_token = q_block * BLOCK_Q;
    job.q_tokens = min(BLOCK_Q, shape.q_tokens - job.q_token);
#endif
}

__device__ __forceinline__ u32 symbols_row_of(const Shape& shape, u32 row) {
    return shape.symbol_batches == 1 ? row % (shape.heads * shape.q_blocks) : row;
}

// The entries of a tile, which thread 0 writes for all.
__device__ __forceinline__ void decode_tile(const AttentionParams& params, Control& control, u32 tile_index) {
    const Tile tile = reinterpret_cast<TileWalk*>(control.walk)->next(params);
    Entry* entries = control.entries + tile_index * STEPS_PER_TILE % ENTRIES;
#pragma unroll
    for (u32 i = 0; i < STEPS_PER_TILE; i++) {
        const u32 token = KV_BLOCK == STEP ? tile.token[i * STEP / KV_BLOCK] : tile.token[0] + i * STEP;
        entries[i] = Entry{token, tile.note[0].columns[i], tile.note[0].mask[i]};
    }
}

// The next piece of work and the entries of its first two tiles.
__device__ __noinline__ void fetch(const AttentionParams& params, Control& control) {
    control.current ^= 1;
    Job& job = control.jobs[control.current];
    job.steps = 0;
    if (!reinterpret_cast<Work*>(control.work)->next(job.piece)) return;
    job.steps = job.piece.count * STEPS_PER_TILE;
    place_row(params, job.piece.row, job);
    const u32 kv_head = job.head / (params.shape.heads / params.shape.kv_heads);
    job.k = row_of(params.k, job.batch, kv_head, 0);
    job.v = row_of(params.v, job.batch, kv_head, 0);
    const TileWalk walk(params, symbols_row_of(params.shape, job.piece.row), 0, job.piece.begin);
    memcpy(control.walk, &walk, sizeof(walk));
    decode_tile(params, control, 0);
    if (job.piece.count > 1) decode_tile(params, control, 1);
}

// --------------------------------------------------------------------------------------------------------------------- loads

// Load number `load` of a piece: even ones are the keys of step load / 2, odd ones its values. Tokens beyond the block become
// zeros, which masked weights may be multiplied with.
__device__ __forceinline__ void load_step(const AttentionParams& params, const Control& control, u32 load, u32 buffer) {
    const Job& job = control.jobs[control.current];
    constexpr u32 ROWS_AT_ONCE = THREADS / CHUNKS;
    if (load / 2 < job.steps) {
        const bool is_key = load % 2 == 0;
        const u32 token = control.entries[load / 2 % ENTRIES].token;
        const u32 tokens = control.entries[load / 2 % ENTRIES].tokens;
        const u32 thread = tid_x();
        const u32 row = thread / CHUNKS;
        const u64 stride = 2 * (is_key ? params.k.token_stride : params.v.token_stride);
        const u8* source = (is_key ? job.k : job.v) + (token + row) * stride + thread % CHUNKS * 16;
        // ROWS_AT_ONCE is a multiple of 8, so the swizzle is the same in all rows of a thread.
        const u32 destination = buffer + swizzled(row, thread % CHUNKS);
#pragma unroll
        for (u32 i = 0; i < STEP / ROWS_AT_ONCE; i++) {
            const u32 bytes = row + i * ROWS_AT_ONCE < tokens ? 16 : 0;
            cp_async_cg_16(destination + i * ROWS_AT_ONCE * ROW_BYTES, source + i * ROWS_AT_ONCE * stride, bytes);
        }
    }
    // A group for every load, even for none: waiting counts groups.
    cp_async_commit_group();
}
static_assert(THREADS / CHUNKS % 8 == 0, "rows of a thread share their swizzle");

// The queries of this warp, which no other warp reads.
__device__ __forceinline__ void load_queries(const AttentionParams& params, const Job& job, u32 queries) {
    const u32 thread = tid_x();
    const u32 lane = thread % 32;
    const u32 first = thread / 32 * ROWS;
    const u8* source = row_of(params.q, job.batch, job.head, job.q_token) + lane % CHUNKS * 16;
#pragma unroll
    for (u32 i = 0; i < ROWS * CHUNKS / 32; i++) {
        const u32 row = first + i * (32 / CHUNKS) + lane / CHUNKS;
        const u32 bytes = row < job.q_tokens ? 16 : 0;
        cp_async_cg_16(queries + swizzled(row, lane % CHUNKS), source + row * params.q.token_stride * 2, bytes);
    }
    cp_async_commit_group();
}

// --------------------------------------------------------------------------------------------------------------------- a step

// S = Q K^T. The address of a chunk differs from that of chunk 0 or 1 by an exclusive or, as rows start at multiples of their size.
__device__ __forceinline__ void multiply_keys(float (&s)[M_TILES][S_TILES][4], u32 queries, u32 keys) {
    const u32 lane = threadIdx.x % 32;
    const u32 q_address = queries + swizzled(threadIdx.x / 32 * ROWS + lane % 16, lane / 16);
    const u32 k_address = keys + swizzled(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (u32 m = 0; m < M_TILES; m++) {
#pragma unroll
        for (u32 n = 0; n < S_TILES; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
    }
#pragma unroll
    for (u32 k = 0; k < HEAD_DIM / 16; k++) {
        u32 a[M_TILES][4];
#pragma unroll
        for (u32 m = 0; m < M_TILES; m++) ldmatrix_x4(a[m], (q_address ^ (k * 32)) + m * 16 * ROW_BYTES);
#pragma unroll
        for (u32 n = 0; n < S_TILES; n += 2) {
            u32 b[4];
            ldmatrix_x4(b, (k_address ^ (k * 32)) + n * 8 * ROW_BYTES);
#pragma unroll
            for (u32 m = 0; m < M_TILES; m++) {
                mma_m16n8k16(s[m][n], a[m], b[0], b[1]);
                mma_m16n8k16(s[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Takes keys out of S: those beyond the block, and those the token mask leaves out. Lane l holds the mask of row l % ROWS.
__device__ __forceinline__ void mask_scores(float (&s)[M_TILES][S_TILES][4], u32 tokens, u64 mask) {
    const u32 lane = threadIdx.x % 32;
    const u64 within = tokens < STEP ? (1ull << tokens) - 1 : ~0ull;
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        const u64 allowed = (__shfl_sync(~0u, mask, i * 8 + lane / 4) & within) >> (lane % 4 * 2);
        float(&row)[S_TILES][4] = s[i / 2];
#pragma unroll
        for (u32 n = 0; n < S_TILES; n++) {
            if (!(allowed >> (n * 8) & 1)) row[n][i % 2 * 2] = -INFINITE;
            if (!(allowed >> (n * 8 + 1) & 1)) row[n][i % 2 * 2 + 1] = -INFINITE;
        }
    }
}

// Moves the maxima that have grown too much, and what was summed under the old ones with them.
__device__ __forceinline__ void raise_maxima(const float (&s)[M_TILES][S_TILES][4], Accumulators& sums, float scale) {
    float highest[M_TILES][2];
    bool grown = false;
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        float highest_of_row = -INFINITE;
#pragma unroll
        for (u32 n = 0; n < S_TILES; n++) {
            highest_of_row = fmaxf(highest_of_row, fmaxf(s[i / 2][n][i % 2 * 2], s[i / 2][n][i % 2 * 2 + 1]));
        }
        highest[i / 2][i % 2] = quad_max(highest_of_row) * scale;
        grown |= highest[i / 2][i % 2] > sums.max[i / 2][i % 2] + SLACK;
    }
    if (!__any_sync(~0u, grown)) return;
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        float& max = sums.max[i / 2][i % 2];
        if (!(highest[i / 2][i % 2] > max + SLACK)) continue;
        const float factor = ex2_approx(max - highest[i / 2][i % 2]);
        max = highest[i / 2][i % 2];
        sums.sum[i / 2][i % 2] *= factor;
#pragma unroll
        for (u32 n = 0; n < O_TILES; n++) {
            sums.out[i / 2][n][i % 2 * 2] *= factor;
            sums.out[i / 2][n][i % 2 * 2 + 1] *= factor;
        }
    }
}

// S becomes weights, in pairs of 16 bits: the layout of a result is that of a left operand, 16 keys at a time.
__device__ __forceinline__ void weigh(
    const float (&s)[M_TILES][S_TILES][4], u32 (&p)[M_TILES][STEP / 16][4], Accumulators& sums, float scale) {
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        const float max = sums.max[i / 2][i % 2];
        // A row that has seen no key yet has only weights 2^-inf = 0; inf - inf would be NaN.
        const float reference = max == -INFINITE ? 0.0f : max;
        float sum = 0.0f;
#pragma unroll
        for (u32 n = 0; n < S_TILES; n++) {
            const float low = ex2_approx(fmaf(s[i / 2][n][i % 2 * 2], scale, -reference));
            const float high = ex2_approx(fmaf(s[i / 2][n][i % 2 * 2 + 1], scale, -reference));
            sum += low + high;
            p[i / 2][n / 2][n % 2 * 2 + i % 2] = pack(low, high);
        }
        sums.sum[i / 2][i % 2] += sum;
    }
}

// O += P V.
__device__ __forceinline__ void multiply_values(Accumulators& sums, const u32 (&p)[M_TILES][STEP / 16][4], u32 values) {
    const u32 lane = threadIdx.x % 32;
    const u32 v_address = values + swizzled(lane % 16, lane / 16);
#pragma unroll
    for (u32 k = 0; k < STEP / 16; k++) {
#pragma unroll
        for (u32 n = 0; n < O_TILES; n += 2) {
            u32 b[4];
            ldmatrix_x4_trans(b, (v_address ^ (n * 16)) + k * 16 * ROW_BYTES);
#pragma unroll
            for (u32 m = 0; m < M_TILES; m++) {
                mma_m16n8k16(sums.out[m][n], p[m][k], b[0], b[1]);
                mma_m16n8k16(sums.out[m][n + 1], p[m][k], b[2], b[3]);
            }
        }
    }
}

// All steps of a piece. Its first STAGES - 1 loads are under way.
__device__ __forceinline__ void attend(
    const AttentionParams& params, Control& control, u32 queries, Accumulators& sums) {
    const u32 buffers = queries + Q_BYTES;
    // Read anew in every step rather than kept in a register.
    auto steps = [&] { return control.jobs[control.current].steps; };
    // Waits for load number `load` and starts the one that takes the place of the one before it, which the barrier has freed.
    u32 slot = 0;
    auto turn = [&](u32 load) {
        cp_async_wait_group<STAGES - 2>();
        __syncthreads();
        const u32 freed = slot == 0 ? STAGES - 1 : slot - 1;
        load_step(params, control, load + STAGES - 1, buffers + freed * STAGE_BYTES);
        const u32 buffer = buffers + slot * STAGE_BYTES;
        slot = slot == STAGES - 1 ? 0 : slot + 1;
        return buffer;
    };
    for (u32 step = 0; step < steps(); step++) {
        const u32 keys = turn(2 * step);
        const u32 ahead = step + 2 * STEPS_PER_TILE;
        if (threadIdx.x == 0 && step % STEPS_PER_TILE == 0 && ahead < steps()) decode_tile(params, control, ahead / STEPS_PER_TILE);
        const Entry entry = control.entries[step % ENTRIES];
        u32 p[M_TILES][STEP / 16][4];
        if (entry.tokens > 0) {
            const bool has_mask = MASKS && entry.mask != NO_MASK;
            u64 mask = ~0ull;
            // Before the product, which hides the latency.
            if (has_mask) {
                const u32 thread = tid_x();
                mask = __ldg(params.symbols.tiles + entry.mask + (thread / 32 * ROWS + thread % ROWS) * MASK_WORDS);
            }
            float s[M_TILES][S_TILES][4];
            multiply_keys(s, queries, keys);
            if (has_mask || entry.tokens < STEP) mask_scores(s, entry.tokens, mask);
            raise_maxima(s, sums, params.scale_log2);
            weigh(s, p, sums, params.scale_log2);
        }
        const u32 values = turn(2 * step + 1);
        if (control.entries[step % ENTRIES].tokens > 0) multiply_values(sums, p, values);
    }
}

// -------------------------------------------------------------------------------------------------------------------- output

// Adds up the sums of a row's four lanes.
__device__ __forceinline__ void sum_lanes(Accumulators& sums) {
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) sums.sum[i / 2][i % 2] = quad_sum(sums.sum[i / 2][i % 2]);
}

__device__ __forceinline__ float lse_of(float max, float sum) { return sum == 0.0f ? -INFINITE : (max + lg2_approx(sum)) * LN_2; }

// A row that attended to nothing is zeros. NOTE: a NaN sum is not empty; it must reach the output.
__device__ __forceinline__ float factor_of(float sum) { return sum == 0.0f ? 0.0f : __fdividef(1.0f, sum); }

// A whole row: through this warp's part of the queries' memory, so that whole chunks go out.
__device__ __forceinline__ void store_row(const AttentionParams& params, const Job& job, u8* queries, const Accumulators& sums) {
    const u32 thread = tid_x();
    const u32 lane = thread % 32;
    const u32 first = thread / 32 * ROWS;
    __syncwarp(); // all lanes have read their queries
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        const u32 row = first + i * 8 + lane / 4;
        const float sum = sums.sum[i / 2][i % 2];
        const float factor = factor_of(sum);
#pragma unroll
        for (u32 n = 0; n < O_TILES; n++) {
            const float* pair = &sums.out[i / 2][n][i % 2 * 2];
            *reinterpret_cast<u32*>(queries + swizzled(row, n) + lane % 4 * 4) = pack(pair[0] * factor, pair[1] * factor);
        }
        if (params.lse != nullptr && lane % 4 == 0 && row < job.q_tokens) {
            params.lse[lse_index(params.shape, job.batch, job.head, job.q_token + row)] = lse_of(sums.max[i / 2][i % 2], sum);
        }
    }
    __syncwarp();
    u8* out = row_of_out(params.out, job.batch, job.head, job.q_token) + lane % CHUNKS * 16;
#pragma unroll
    for (u32 i = 0; i < ROWS * CHUNKS / 32; i++) {
        const u32 row = first + i * (32 / CHUNKS) + lane / CHUNKS;
        const uint4 chunk = *reinterpret_cast<const uint4*>(queries + swizzled(row, lane % CHUNKS));
        if (row < job.q_tokens) *reinterpret_cast<uint4*>(out + row * params.out.token_stride * 2) = chunk;
    }
    __syncwarp(); // the next queries may come
}

// A piece of a divided row, as it is.
__device__ __forceinline__ void store_piece(const Plan& plan, u32 slot, const Accumulators& sums) {
    const u32 thread = tid_x();
    const u32 lane = thread % 32;
#pragma unroll
    for (u32 i = 0; i < 2 * M_TILES; i++) {
        const u64 row = u64(slot) * BLOCK_Q + thread / 32 * ROWS + i * 8 + lane / 4;
        float2* out = reinterpret_cast<float2*>(plan.partial_out + row * HEAD_DIM) + lane % 4;
#pragma unroll
        for (u32 n = 0; n < O_TILES; n++) {
            const float* pair = &sums.out[i / 2][n][i % 2 * 2];
            out[n * 4] = make_float2(pair[0], pair[1]);
        }
        if (lane % 4 == 0) {
            reinterpret_cast<float2*>(plan.partial_stats)[row] = make_float2(sums.max[i / 2][i % 2], sums.sum[i / 2][i % 2]);
        }
    }
}

// Calls `action` with the slot of each piece of a divided row, in the order of thread blocks, whoever finished first.
template <typename Action>
__device__ __forceinline__ void for_each_piece(const Plan& plan, const Piece& piece, Action action) {
    for (u32 block = piece.first; block <= piece.last; block++) {
        // Between them there may be thread blocks without work.
        if (is_before(load_cut(plan.cuts, block), load_cut(plan.cuts, block + 1))) action(slot_of(block, piece.first));
    }
}

// Joins the pieces of a divided row. Thread by thread 8 columns of a query.
__device__ __noinline__ void merge_pieces(const AttentionParams& params, const Job& job) {
    constexpr u32 THREADS_PER_ROW = HEAD_DIM / 8;
    const Plan& plan = params.plan;
    const float2* stats = reinterpret_cast<const float2*>(plan.partial_stats);
    const u32 column = threadIdx.x % THREADS_PER_ROW * 8;
    for (u32 row = threadIdx.x / THREADS_PER_ROW; row < job.q_tokens; row += THREADS / THREADS_PER_ROW) {
        // Past the first-level cache, here and below: other multiprocessors have written it.
        float max = -INFINITE;
        for_each_piece(plan, job.piece, [&](u32 slot) { max = fmaxf(max, __ldcg(stats + u64(slot) * BLOCK_Q + row).x); });
        const float reference = max == -INFINITE ? 0.0f : max;
        float sum = 0.0f;
        float out[8] = {};
        for_each_piece(plan, job.piece, [&](u32 slot) {
            const u64 index = u64(slot) * BLOCK_Q + row;
            const float2 of_piece = __ldcg(stats + index);
            const float weight = ex2_approx(of_piece.x - reference);
            const float4* values = reinterpret_cast<const float4*>(plan.partial_out + index * HEAD_DIM + column);
            const float4 low = __ldcg(values);
            const float4 high = __ldcg(values + 1);
            const float of_slot[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            sum += weight * of_piece.y;
#pragma unroll
            for (u32 i = 0; i < 8; i++) out[i] += weight * of_slot[i];
        });
        const float factor = factor_of(sum);
        uint4 chunk;
        chunk.x = pack(out[0] * factor, out[1] * factor);
        chunk.y = pack(out[2] * factor, out[3] * factor);
        chunk.z = pack(out[4] * factor, out[5] * factor);
        chunk.w = pack(out[6] * factor, out[7] * factor);
        const u32 token = job.q_token + row;
        *reinterpret_cast<uint4*>(row_of_out(params.out, job.batch, job.head, token) + column * 2) = chunk;
        if (params.lse != nullptr && column == 0) {
            params.lse[lse_index(params.shape, job.batch, job.head, token)] = lse_of(max, sum);
        }
    }
}

// Leaves a piece of a divided row in the workspace; the last of its thread blocks to come joins all. Nobody waits for anybody.
__device__ __forceinline__ void finish_piece(
    const AttentionParams& params, Control& control, const Job& job, const Accumulators& sums) {
    store_piece(params.plan, job.piece.slot, sums);
    __threadfence(); // the piece comes before its arrival
    __syncthreads();
    if (threadIdx.x == 0) {
        u32* arrived = params.plan.arrived + job.piece.first;
        control.is_last = atomicAdd(arrived, 1) == job.piece.pieces - 1;
        if (control.is_last) *arrived = 0; // for the next launch
        __threadfence(); // and those of the others before what follows
    }
    __syncthreads();
    if (control.is_last) merge_pieces(params, job);
}

// Grid: plan.ctas thread blocks of THREADS threads, dynamic shared memory as in the table above.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM) attention(const __grid_constant__ AttentionParams params) {
    extern __shared__ __align__(1024) u8 shared[];
    Control& control = *reinterpret_cast<Control*>(shared + Q_BYTES + STAGES * STAGE_BYTES);
    const u32 queries = shared_address(shared);
    // Thread 0 fetches a piece for all, and all start its first loads.
    auto start = [&] {
        __syncthreads(); // all are done with the last piece, and so with its buffers and control
        if (threadIdx.x == 0) fetch(params, control);
        __syncthreads();
#pragma unroll
        for (u32 load = 0; load < STAGES - 1; load++) load_step(params, control, load, queries + Q_BYTES + load * STAGE_BYTES);
    };
    if (threadIdx.x == 0) {
        const Work work(params.plan, blockIdx.x);
        memcpy(control.work, &work, sizeof(work));
        control.current = 0;
    }
    start();
    while (control.jobs[control.current].steps > 0) {
        load_queries(params, control.jobs[control.current], queries);
        Accumulators sums = {};
#pragma unroll
        for (u32 m = 0; m < M_TILES; m++) sums.max[m][0] = sums.max[m][1] = -INFINITE;
        cp_async_wait_group<0>(); // the queries are the youngest group
        attend(params, control, queries, sums);
        sum_lanes(sums);
        start();
        const Job& job = control.jobs[control.current ^ 1]; // the one that is done
        if (job.piece.slot == WHOLE) {
            store_row(params, job, shared, sums);
        } else {
            finish_piece(params, control, job, sums);
        }
    }
    fill(params, threadIdx.x, THREADS);
}
