// What both kernels of features share: eight numbers of 16 bits at a time, and which of them a thread does.
//
// Numbers are bf16 or fp16 (OMNI_BF16), everything between them is single precision. Memory is read and written once, in pieces of 16 bytes:
// the time is that of the memory.
#pragma once
#include "common/math.cuh"
#include "params.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WIDTH = 8; // numbers of a piece

struct Piece {
    float x[WIDTH];
};

__device__ __forceinline__ Piece load(const void* tensor, u64 piece) {
    const uint4 bits = reinterpret_cast<const uint4*>(tensor)[piece];
    const u32 words[WIDTH / 2] = {bits.x, bits.y, bits.z, bits.w};
    Piece loaded;
#pragma unroll
    for (u32 i = 0; i < WIDTH / 2; ++i) {
        float2 pair = unpack(words[i]);
        loaded.x[2 * i] = pair.x, loaded.x[2 * i + 1] = pair.y;
    }
    return loaded;
}

__device__ __forceinline__ void store(void* tensor, u64 piece, const Piece& from) {
    u32 words[WIDTH / 2];
#pragma unroll
    for (u32 i = 0; i < WIDTH / 2; ++i) words[i] = pack(from.x[2 * i], from.x[2 * i + 1]);
    reinterpret_cast<uint4*>(tensor)[piece] = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ u64 first_piece() {
    return u64(blockIdx.x) * THREADS + threadIdx.x;
}

__device__ __forceinline__ u64 piece_step() {
    return u64(gridDim.x) * THREADS;
}
