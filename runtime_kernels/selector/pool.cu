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
// thousands: pool gives four neighbouring channels to a thread, so that a warp reads 256 bytes of a token in one piece, and each thread
// has 16 tokens on their way before it adds the first: 128 bytes, which fills the memory's latency from a few hundred threads of a
// multiprocessor on. All tensors are pooled in one launch and read once.
//
// Who does what: pool, any threads along x for the channels of all blocks, along y the heads of one tensor after the other; centre, any
// threads along x for the channels, heads along y. similarity: a thread block for a block of tokens; each thread finds the norms of
// one or two tokens, then sums two channels. Shared memory: 3 KiB in similarity alone.
#include "selector/arithmetic.cuh"

constexpr u32 CHANNELS = 4; // of a thread: 8 bytes
constexpr u32 AHEAD = 16;   // tokens on their way, fewer where each has an address of its own
constexpr u32 FEW = 4;

__device__ __forceinline__ const u16* row_of(const Tokens& tokens, u32 head, u32 token) {
    const u32 place = tokens.order == nullptr ? token : __ldg(tokens.order + token);
    return tokens.data + tokens.heads[head] * tokens.head_stride + place * tokens.token_stride;
}

// What is gathered of some channels.
struct Statistics {
    float sum[CHANNELS];
    float least[CHANNELS];
    float most[CHANNELS];

    template <bool BF16, bool EXTREMES>
    __device__ __forceinline__ void add(uint2 numbers) {
#pragma unroll
        for (u32 c = 0; c < CHANNELS; ++c) {
            const float x = widen(u16((c < 2 ? numbers.x : numbers.y) >> (c % 2 * 16)), BF16);
            sum[c] += x;
            if (EXTREMES) least[c] = smaller(least[c], x), most[c] = larger(most[c], x);
        }
    }
};

// The channels of a thread, from `channel` on, where the last group may have fewer.
__device__ __forceinline__ uint2 load_some(const u16* row, u32 channel, u32 dim) {
    u32 numbers[CHANNELS];
#pragma unroll
    for (u32 c = 0; c < CHANNELS; ++c) numbers[c] = channel + c < dim ? row[channel + c] : 0;
    return make_uint2(numbers[0] | numbers[1] << 16, numbers[2] | numbers[3] << 16);
}

// Adds some tokens, at most so many. PLAIN: they lie one behind the other, and all groups of channels are whole.
template <bool BF16, bool EXTREMES, bool PLAIN, bool FULL, u32 MOST = PLAIN ? AHEAD : FEW>
__device__ __forceinline__ void add_tokens(const Tokens& tokens, u32 head, u32 token, u32 end, u32 channel, Statistics& found) {
    uint2 numbers[MOST];
    const u16* first = PLAIN ? row_of(tokens, head, token) + channel : nullptr;
#pragma unroll
    for (u32 i = 0; i < MOST; ++i) {
        if (!FULL && token + i >= end) continue;
        if (PLAIN) {
            numbers[i] = __ldg(reinterpret_cast<const uint2*>(first + i * tokens.token_stride));
        } else {
            numbers[i] = load_some(row_of(tokens, head, token + i), channel, tokens.dim);
        }
    }
#pragma unroll
    for (u32 i = 0; i < MOST; ++i) {
        if (FULL || token + i < end) found.add<BF16, EXTREMES>(numbers[i]);
    }
}

template <bool BF16, bool EXTREMES, bool PLAIN>
__device__ __forceinline__ void walk(const PooledSide& side, u32 head, u32 token, u32 end, u32 channel, Statistics& found) {
    constexpr u32 MOST = PLAIN ? AHEAD : FEW;
    for (; token + MOST <= end; token += MOST) {
        add_tokens<BF16, EXTREMES, PLAIN, true>(side.tokens, head, token, end, channel, found);
    }
    if (token < end) add_tokens<BF16, EXTREMES, PLAIN, false>(side.tokens, head, token, end, channel, found);
}

template <bool BF16, bool EXTREMES>
__device__ __forceinline__ void walk(const PooledSide& side, u32 head, u32 token, u32 end, u32 channel, Statistics& found) {
    const bool is_plain = side.tokens.order == nullptr && side.tokens.dim % CHANNELS == 0;
    is_plain ? walk<BF16, EXTREMES, true>(side, head, token, end, channel, found)
             : walk<BF16, EXTREMES, false>(side, head, token, end, channel, found);
}

extern "C" __global__ void __launch_bounds__(64, 12) selector_pool(const __grid_constant__ PoolParams params) {
    wait_for_turn();
    const PooledSide& side = params.sides[blockIdx.y / params.heads];
    const u32 head = blockIdx.y % params.heads;
    const u32 dim = side.tokens.dim, groups = (dim + CHANNELS - 1) / CHANNELS;
    const u32 item = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 block = item / groups, channel = item % groups * CHANNELS;
    if (block >= side.blocks) return;
    Statistics found;
#pragma unroll
    for (u32 c = 0; c < CHANNELS; ++c) found.sum[c] = 0.0f, found.least[c] = INFINITE, found.most[c] = -INFINITE;
    const u32 start = side.offsets[block], end = side.offsets[block + 1];
    const bool extremes = side.least != nullptr || side.most != nullptr;
    if (side.tokens.is_bf16) {
        extremes ? walk<true, true>(side, head, start, end, channel, found) : walk<true, false>(side, head, start, end, channel, found);
    } else {
        extremes ? walk<false, true>(side, head, start, end, channel, found) : walk<false, false>(side, head, start, end, channel, found);
    }
    const float count = float(end - start);
    const u64 place = (u64(head) * side.blocks + block) * dim + channel;
    bool fine = true;
#pragma unroll
    for (u32 c = 0; c < CHANNELS; ++c) {
        if (channel + c >= dim) continue;
        fine &= is_finite(found.sum[c]);
        if (side.mean != nullptr) side.mean[place + c] = found.sum[c] / count;
        if (side.sum != nullptr) side.sum[place + c] = found.sum[c];
        if (side.least != nullptr) side.least[place + c] = found.least[c] + 0.0f;
        if (side.most != nullptr) side.most[place + c] = found.most[c] + 0.0f;
    }
    if (!fine) *params.status = 1;
}

extern "C" __global__ void selector_centre(const __grid_constant__ CentreParams params) {
    wait_for_turn();
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

// Two channels of a token; where their number is odd, the last row may end behind the first of them.
__device__ __forceinline__ u32 load_two(const u16* row, u32 channel, u32 dim) {
    if (dim % 2 == 0) return __ldg(reinterpret_cast<const u32*>(row + channel));
    return row[channel] | (channel + 1 < dim ? u32(row[channel + 1]) << 16 : 0);
}

// The squares of a token's channels: their sum in order, and the smallest.
struct Squares {
    float sum = 0.0f;
    float least = INFINITE;
};

// A thread reads its own row, so that wide reads are what keeps the number of lines that a warp asks for small.
__device__ __forceinline__ Squares squares_of(const u16* row, u32 dim, bool is_bf16) {
    Squares found;
    const auto add = [&](u32 number) {
        const float x = widen(u16(number), is_bf16), square = x * x;
        found.sum += square;
        found.least = fminf(found.least, square);
    };
    if (dim % 8 != 0) {
        for (u32 c = 0; c < dim; ++c) add(row[c]);
        return found;
    }
    constexpr u32 WIDE = 4; // reads on their way, of eight channels each
    for (u32 c = 0; c < dim; c += WIDE * 8) {
        uint4 numbers[WIDE];
#pragma unroll
        for (u32 i = 0; i < WIDE; ++i) {
            if (c + i * 8 < dim) numbers[i] = __ldg(reinterpret_cast<const uint4*>(row + c + i * 8));
        }
#pragma unroll
        for (u32 i = 0; i < WIDE; ++i) {
            if (c + i * 8 >= dim) break;
            add(numbers[i].x), add(numbers[i].x >> 16), add(numbers[i].y), add(numbers[i].y >> 16);
            add(numbers[i].z), add(numbers[i].z >> 16), add(numbers[i].w), add(numbers[i].w >> 16);
        }
    }
    return found;
}

// The norm of a token, and its rounded reciprocal; zero in place of it where a quotient must be divided: where exponents might leave the range of
// normal numbers, and where the norm is zero.
struct Norm {
    float value;
    float inverse;
};

__device__ __forceinline__ Norm norm_of(const Squares& squares) {
    const float norm = __fsqrt_rn(squares.sum);
    const bool is_plain = squares.least >= power_of_two(-120) && norm <= power_of_two(60);
    return Norm{norm, is_plain ? 1.0f / norm : 0.0f};
}

// x / norm of a plain token: a third of the instructions of a division. Of every number of 16 bits and every norm it is the rounded quotient: all
// pairs of mantissas of either type were tried.
__device__ __forceinline__ float divide(float x, const Norm& norm) {
    const float near = x * norm.inverse;
    return fmaf(fmaf(-near, norm.value, x), norm.inverse, near);
}

constexpr u32 SIMILARITY_THREADS = 128;

extern "C" __global__ void __launch_bounds__(SIMILARITY_THREADS) selector_similarity(const __grid_constant__ SimilarityParams params) {
    wait_for_turn();
    __shared__ Norm norms[MOST_TOKENS];
    __shared__ __align__(16) float squares[MOST_TOKENS];
    const Tokens& tokens = params.tokens;
    const u32 block = blockIdx.x, head = blockIdx.y, dim = tokens.dim;
    const u32 start = params.offsets[block], count = params.offsets[block + 1] - start;
    for (u32 t = threadIdx.x; t < count; t += SIMILARITY_THREADS) {
        norms[t] = norm_of(squares_of(row_of(tokens, head, start + t), dim, tokens.is_bf16));
    }
    __syncthreads();
    // Two channels to a thread.
    for (u32 c = 2 * threadIdx.x; c < dim; c += 2 * SIMILARITY_THREADS) {
        float sums[2] = {0.0f, 0.0f};
        for (u32 t = 0; t < count; t += 8) {
            u32 numbers[8];
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                if (t + i < count) numbers[i] = load_two(row_of(tokens, head, start + t + i), c, dim);
            }
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                if (t + i >= count) break;
                const Norm norm = norms[t + i];
                const float x[2] = {widen(u16(numbers[i]), tokens.is_bf16), widen(u16(numbers[i] >> 16), tokens.is_bf16)};
#pragma unroll
                for (u32 j = 0; j < 2; ++j) {
                    if (norm.inverse != 0.0f) {
                        sums[j] += divide(x[j], norm);
                    } else {
                        sums[j] += norm.value == 0.0f ? 0.0f : x[j] / norm.value;
                    }
                }
            }
        }
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            const float mean = sums[j] / float(count);
            if (c + j < dim) squares[c + j] = mean * mean;
        }
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    float similarity = 0.0f;
    u32 c = 0;
    for (; c + 4 <= dim; c += 4) {
        const float4 four = *reinterpret_cast<const float4*>(squares + c);
        similarity += four.x, similarity += four.y, similarity += four.z, similarity += four.w;
    }
    for (; c < dim; ++c) similarity += squares[c];
    params.out[u64(head) * params.blocks + block] = similarity;
    if (!is_finite(similarity)) *params.status = 1;
}
