// Statistics of the tokens of blocks.
//
//   pool        mean[h, b, c] = (sum over tokens t of block b, in order, of x[h, t, c]) / tokens of b; least, most: its extremes
//   centre      out[h, b, c] = mean[h, b, c] - (sum over blocks, in order, of sum[h, b, c]) / tokens
//   similarity  out[h, b] = sum over c, in order, of (mean over t of x[h, t, c] / |x[h, t]|)^2
//
//   in    x [heads, tokens, dim] of 16-bit numbers, blocks as offsets
//   out   floats [heads][blocks][dim], or [heads][blocks]; status becomes 1 where a sum is not finite
//
// Sums have one order, so a channel of a block is one chain of additions. There are heads * blocks * dim of them, tens to hundreds of
// thousands: pool gives two neighbouring channels to a thread, so that a warp reads 128 bytes of a token in one piece, and each thread has
// 32 tokens on their way before it adds the first. The tensor is read once, and there are enough reads under way for short sequences too.
//
// Who does what: pool and centre, any threads along x for the channels of all blocks, heads along y. similarity: a thread block of
// 256 for a block of tokens; each thread finds the norm of a token, then sums a channel. Shared memory: 2 KiB in similarity alone.
#include "selector/arithmetic.cuh"

constexpr u32 CHANNELS = 2; // of a thread: 4 bytes
constexpr u32 AHEAD = 32;   // tokens on their way

__device__ __forceinline__ const u16* row_of(const Tokens& tokens, u32 head, u32 token) {
    const u32 place = tokens.order == nullptr ? token : __ldg(tokens.order + token);
    return tokens.data + tokens.heads[head] * tokens.head_stride + place * tokens.token_stride;
}

// What is gathered of two channels.
struct Statistics {
    float sum[CHANNELS];
    float least[CHANNELS];
    float most[CHANNELS];

    template <bool BF16, bool EXTREMES>
    __device__ __forceinline__ void add(u32 numbers) {
#pragma unroll
        for (u32 c = 0; c < CHANNELS; ++c) {
            const float x = widen(u16(numbers >> (c * 16)), BF16);
            sum[c] += x;
            if (EXTREMES) least[c] = smaller(least[c], x), most[c] = larger(most[c], x);
        }
    }
};

// Two channels from `channel` on; where their number is odd, the last row may end behind the first of them.
__device__ __forceinline__ u32 load(const u16* row, u32 channel, u32 dim) {
    if (dim % CHANNELS == 0) return __ldg(reinterpret_cast<const u32*>(row + channel));
    return row[channel] | (channel + 1 < dim ? u32(row[channel + 1]) << 16 : 0);
}

template <bool BF16, bool EXTREMES>
__device__ __forceinline__ void walk(const PoolParams& params, u32 block, u32 channel, Statistics& found) {
    const u32 end = params.offsets[block + 1];
    for (u32 token = params.offsets[block]; token < end; token += AHEAD) {
        u32 numbers[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            if (token + i < end) numbers[i] = load(row_of(params.tokens, blockIdx.y, token + i), channel, params.tokens.dim);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            if (token + i < end) found.add<BF16, EXTREMES>(numbers[i]);
        }
    }
}

extern "C" __global__ void selector_pool(const __grid_constant__ PoolParams params) {
    const u32 dim = params.tokens.dim, groups = (dim + CHANNELS - 1) / CHANNELS;
    const u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 block = item / groups, channel = item % groups * CHANNELS;
    if (block >= params.blocks) return;
    Statistics found;
#pragma unroll
    for (u32 c = 0; c < CHANNELS; ++c) found.sum[c] = 0.0f, found.least[c] = INFINITE, found.most[c] = -INFINITE;
    const bool extremes = params.least != nullptr || params.most != nullptr;
    if (params.tokens.is_bf16) {
        extremes ? walk<true, true>(params, block, channel, found) : walk<true, false>(params, block, channel, found);
    } else {
        extremes ? walk<false, true>(params, block, channel, found) : walk<false, false>(params, block, channel, found);
    }
    const float count = float(params.offsets[block + 1] - params.offsets[block]);
    const u64 place = (u64(blockIdx.y) * params.blocks + block) * dim + channel;
    bool fine = true;
#pragma unroll
    for (u32 c = 0; c < CHANNELS; ++c) {
        if (channel + c >= dim) continue;
        fine &= is_finite(found.sum[c]);
        if (params.mean != nullptr) params.mean[place + c] = found.sum[c] / count;
        if (params.sum != nullptr) params.sum[place + c] = found.sum[c];
        if (params.least != nullptr) params.least[place + c] = found.least[c] + 0.0f;
        if (params.most != nullptr) params.most[place + c] = found.most[c] + 0.0f;
    }
    if (!fine) *params.status = 1;
}

extern "C" __global__ void selector_centre(const __grid_constant__ CentreParams params) {
    const u32 channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= params.dim) return;
    const u64 first = u64(blockIdx.y) * params.blocks * params.dim + channel;
    float sum = 0.0f;
    for (u32 block = 0; block < params.blocks; ++block) sum += params.sum[first + u64(block) * params.dim];
    const float centre = sum / float(params.tokens);
    for (u32 block = 0; block < params.blocks; ++block) {
        const u64 place = first + u64(block) * params.dim;
        params.out[place] = params.mean[place] - centre;
    }
}

constexpr u32 MOST_TOKENS = 256; // of a block, and channels

extern "C" __global__ void selector_similarity(const __grid_constant__ SimilarityParams params) {
    __shared__ float norms[MOST_TOKENS];
    __shared__ float squares[MOST_TOKENS];
    const Tokens& tokens = params.tokens;
    const u32 block = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    const u32 start = params.offsets[block], count = params.offsets[block + 1] - start;
    if (thread < count) {
        const u16* row = row_of(tokens, head, start + thread);
        float sum = 0.0f;
        for (u32 c = 0; c < tokens.dim; ++c) {
            const float x = widen(row[c], tokens.is_bf16);
            sum += x * x;
        }
        norms[thread] = __fsqrt_rn(sum);
    }
    __syncthreads();
    if (thread < tokens.dim) {
        float sum = 0.0f;
        for (u32 t = 0; t < count; ++t) {
            const float x = widen(row_of(tokens, head, start + t)[thread], tokens.is_bf16);
            sum += norms[t] == 0.0f ? 0.0f : x / norms[t];
        }
        const float mean = sum / float(count);
        squares[thread] = mean * mean;
    }
    __syncthreads();
    if (thread != 0) return;
    float similarity = 0.0f;
    for (u32 c = 0; c < tokens.dim; ++c) similarity += squares[c];
    params.out[u64(head) * params.blocks + block] = similarity;
    if (!is_finite(similarity)) *params.status = 1;
}
