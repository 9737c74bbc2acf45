// Constants of the projections: what the host chooses (-D), and what follows from it.
#pragma once
#include "common/types.cuh"

#if !defined(OMNI_HEAD_DIM) || !defined(OMNI_BF16) || !defined(OMNI_Q_BLOCK)
#error "a variant is chosen by OMNI_HEAD_DIM, OMNI_BF16 and OMNI_Q_BLOCK"
#endif

#ifndef OMNI_TILE_COLUMNS
#define OMNI_TILE_COLUMNS 256 // of Hopper's kernels and their plan; the portable ones have 128
#endif

constexpr u32 HEAD_DIM = OMNI_HEAD_DIM;
constexpr u32 Q_BLOCK = OMNI_Q_BLOCK; // most tokens of a q-block; two neighbours of 64 share a tile
constexpr u32 BLOCK_Q = 128;     // rows of a tile
constexpr u32 Q_PARTS = BLOCK_Q / Q_BLOCK; // q-blocks of a tile
constexpr u32 TILE_COLUMNS = OMNI_TILE_COLUMNS; // of the output
constexpr u32 STEP = 64;         // of the reduction: a row of 128 bytes
constexpr u32 HEAD_STEPS = HEAD_DIM / STEP;
constexpr u32 TILE_HEADS = TILE_COLUMNS / HEAD_DIM;

static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "rows of a head are one or two panels of 128 bytes");
static_assert(Q_BLOCK == 128 || (Q_BLOCK == 64 && TILE_COLUMNS == 256), "only Hopper's tiles hold two q-blocks");
static_assert(TILE_COLUMNS == 256 || TILE_COLUMNS == 128, "what there are kernels for");
