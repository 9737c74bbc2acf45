// Attention under sparse symbols, as plainly as it can be said: the reference of the fast kernels, for tests and readers.
//
//   out[b, h, i] = sum over j of p[j] v[b, h', j] / sum over j of p[j],    p[j] = exp(scale * q[b, h, i] . k[b, h', j])
//   lse[b, h, i] = log(sum over j of p[j]),    h' = h / (heads / kv_heads)
//
//   in    q [batch, heads, q_tokens, head_dim], k and v [batch, kv_heads, kv_tokens, head_dim], params.symbols
//   out   out [batch, heads, q_tokens, head_dim], lse [batch, heads, q_tokens] if wanted; of params.plan only fill_cached is used
//
// j runs over the tokens of the kv-blocks whose S_s is 1, without those that the token mask of a block of S_p leaves out. A q-block
// whose S_c is 0 keeps its output or gets the forecast.
//
// Who does what: any number of thread blocks, one q-block at a time; a warp to a query, a lane to every 32nd column. Sums are
// in single precision, one key after the other. No shared memory.
#include "common/math.cuh"
#include "common/ptx_sm80.cuh"
#include "common/symbols.cuh"
#include "params.cuh"

constexpr u32 COLUMNS = OMNI_HEAD_DIM / 32; // of a lane

__device__ u16* row_of(const Tensor4& tensor, u32 batch, u32 head, u32 token) {
    return static_cast<u16*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride + token * tensor.token_stride;
}

__device__ float widen(u16 number) { return OMNI_BF16 ? __uint_as_float(u32(number) << 16) : cvt_f32_f16(number); }

__device__ float sum_of_warp(float x) {
    for (u32 distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
    return x;
}

// Online softmax: weights are relative to `max`, and what is summed moves with it.
struct Query {
    float q[COLUMNS];
    float out[COLUMNS];
    float max;
    float sum;

    __device__ void attend(const u16* k, const u16* v, float scale_log2) {
        float dot = 0.0f;
        for (u32 i = 0; i < COLUMNS; i++) dot += q[i] * widen(k[i * 32]);
        const float score = sum_of_warp(dot) * scale_log2;
        const float higher = fmaxf(max, score);
        const float factor = max == higher ? 1.0f : ex2_approx(max - higher);
        const float weight = higher == -INFINITE ? 0.0f : ex2_approx(score - higher);
        for (u32 i = 0; i < COLUMNS; i++) out[i] = out[i] * factor + weight * widen(v[i * 32]);
        sum = sum * factor + weight;
        max = higher;
    }
};

// The token mask of a query in a kv-block; null where all is computed.
__device__ const u64* mask_of(const Symbols& symbols, u32 row, u32 words, u32 block, u32 query) {
    if (symbols.partial == nullptr) return nullptr;
    const u64* partial = symbols.partial + u64(row) * words;
    if (!has_bit(partial, block)) return nullptr;
    const u32 number = partial_number(partial, symbols.partial_start[row], block);
    return symbols.tiles + (u64(symbols.tile_of[number]) * 128 + query) * (OMNI_KV_BLOCK / 64);
}

// All live kv-blocks of a query; `row` is that of the symbols.
__device__ void attend(const AttentionParams& params, u32 row, u32 query_of_block, Query& query, const u16* k, const u16* v) {
    const Symbols& symbols = params.symbols;
    const u32 words = (params.shape.kv_blocks + 63) / 64;
    for (u32 block = 0; block < params.shape.kv_blocks; block++) {
        if (!has_bit(symbols.skip + u64(row) * words, block)) continue;
        const u64* mask = mask_of(symbols, row, words, block, query_of_block);
        const u32 start = symbols.kv_start[block];
        for (u32 i = 0; start + i < symbols.kv_start[block + 1]; i++) {
            if (mask != nullptr && !(mask[i / 64] >> (i % 64) & 1)) continue;
            query.attend(
                k + (start + i) * params.k.token_stride, v + (start + i) * params.v.token_stride, params.scale_log2);
        }
    }
}

extern "C" __global__ void attention_naive(const __grid_constant__ AttentionParams params) {
    const Shape& shape = params.shape;
    const Symbols& symbols = params.symbols;
    const u32 lane = threadIdx.x % 32;
    for (u32 row = blockIdx.x; row < shape.batch * shape.heads * shape.q_blocks; row += gridDim.x) {
        const u32 q_block = row % shape.q_blocks;
        const u32 head = row / shape.q_blocks % shape.heads;
        const u32 batch = row / shape.q_blocks / shape.heads;
        const u32 kv_head = head / (shape.heads / shape.kv_heads);
        const u32 symbols_row = shape.symbol_batches == 1 ? row % (shape.heads * shape.q_blocks) : row;
        const u64* cache = symbols.cache + u64(symbols_row / shape.q_blocks) * ((shape.q_blocks + 63) / 64);
        const bool is_live = has_bit(cache, q_block);
        const bool has_forecast = params.plan.fill_cached && params.forecast.count > 0;
        const u32 start = symbols.q_start[q_block];
        for (u32 token = start + threadIdx.x / 32; token < symbols.q_start[q_block + 1]; token += blockDim.x / 32) {
            if (!is_live && !has_forecast) continue;
            u16* out = row_of(params.out, batch, head, token) + lane;
            const u64 place = (u64(batch) * shape.heads + head) * shape.q_tokens + token;
            Query query = {{}, {}, -INFINITE, 0.0f};
            if (is_live) {
                for (u32 i = 0; i < COLUMNS; i++) query.q[i] = widen(row_of(params.q, batch, head, token)[lane + i * 32]);
                const u16* k = row_of(params.k, batch, kv_head, 0) + lane;
                const u16* v = row_of(params.v, batch, kv_head, 0) + lane;
                attend(params, symbols_row, token - start, query, k, v);
                const bool is_empty = query.sum == 0.0f;
                for (u32 i = 0; i < COLUMNS; i++) query.out[i] = is_empty ? 0.0f : query.out[i] / query.sum;
                if (params.lse != nullptr && lane == 0) {
                    params.lse[place] = is_empty ? -INFINITE : (query.max + lg2_approx(query.sum)) * LN_2;
                }
            } else {
                for (u32 term = 0; term < params.forecast.count; term++) {
                    const float* values = params.forecast.terms[term] + place * OMNI_HEAD_DIM + lane;
                    for (u32 i = 0; i < COLUMNS; i++) query.out[i] += params.forecast.weights[term] * values[i * 32];
                }
            }
            for (u32 i = 0; i < COLUMNS; i++) out[i * 32] = u16(pack(query.out[i], 0.0f));
        }
    }
}
