// Copies and tensor cores as the stand-ins for ptx.cuh and ptx_sm80.cuh call them: TMA (tma.cpp), wgmma (wgmma.cpp), and what devices
// before Hopper have (mma.cpp).
#pragma once
#include <array>

#include "common/types.cuh"

namespace emulator {

// A four-dimensional tensor of 16-bit numbers in global memory and the box that a copy takes: 64 numbers by `rows` rows.
struct TensorBox {
    const u16* data;
    std::array<u32, 4> extent;
    std::array<u64, 4> stride; // in numbers
    u32 rows;
};

// The 32-bit address of something in this block's dynamic shared memory.
u32 shared_address(const void* pointer);

// Copies a box to shared memory some time later, swizzled by 128 bytes, zeros where the tensor ends.
void cp_async_bulk_tensor(u32 destination, const TensorBox& box, u32 barrier, std::array<u32, 4> corner);

// Copies bytes that lie together to shared memory some time later.
void cp_async_bulk(u32 destination, const void* source, u32 bytes, u32 barrier);

// The way back of a box some time later, but for what lies beyond the tensor's ends; groups are those of the thread that issues it.
void cp_async_bulk_tensor_store(const TensorBox& box, u32 source, std::array<u32, 4> corner);
void cp_async_bulk_commit_group();
void cp_async_bulk_wait_group_read(u32 pending);

void stmatrix_x4(u32 address, u32 a, u32 b, u32 c, u32 d);

// Four registers of the left operand; null where it is in shared memory.
using Registers = std::array<const u32*, 4>;

// m64nNk16: d (+)= a b some time later. Called by every thread of a warpgroup with its own part of d.
void wgmma(float* d, u32 columns, const Registers& registers, u64 a, u64 b, u32 accumulate);
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(u32 pending);

// cp.async, ldmatrix and mma.sync (mma.cpp).
void cp_async(u32 destination, const void* source, u32 bytes);
void cp_async_commit_group();
void cp_async_wait_group(u32 pending);
void ldmatrix_x4(u32* d, u32 address, bool is_transposed);
void mma_m16n8k16(float* d, const u32* a, u32 b0, u32 b1);

} // namespace emulator
