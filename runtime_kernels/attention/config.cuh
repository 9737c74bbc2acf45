// Constants of the attention kernels: what the host chooses (-D), and what follows from it.
#pragma once
#include "common/types.cuh"

#if !defined(OMNI_HEAD_DIM) || !defined(OMNI_BF16) || !defined(OMNI_Q_BLOCK) || !defined(OMNI_KV_BLOCK) || !defined(OMNI_MASKS)
#error "a variant is chosen by OMNI_HEAD_DIM, OMNI_BF16, OMNI_Q_BLOCK, OMNI_KV_BLOCK and OMNI_MASKS"
#endif

constexpr u32 HEAD_DIM = OMNI_HEAD_DIM;
constexpr u32 Q_BLOCK = OMNI_Q_BLOCK;   // most tokens of a q-block; two live blocks of 64 share one row of work
constexpr u32 KV_BLOCK = OMNI_KV_BLOCK; // most tokens of a kv-block; two blocks of 64 fill one tile
constexpr bool MASKS = OMNI_MASKS;      // whether blocks may be irregular or have token masks

constexpr u32 BLOCK_Q = 128; // queries of a row of work
constexpr u32 TILE = 128;    // keys of a tile: softmax does not mind which keys stand together
constexpr u32 Q_PARTS = BLOCK_Q / Q_BLOCK; // q-blocks of a row of work

static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "rows of a head are one or two panels of 128 bytes");
static_assert(Q_BLOCK == 128 || (Q_BLOCK == 64 && MASKS), "a row of work holds one q-block, or a pair that need not be neighbours");
static_assert(KV_BLOCK == 64 || KV_BLOCK == 128, "a tile holds one kv-block or a pair");
