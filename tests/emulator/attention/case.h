// One random case of attention: shapes, symbols, tensors and a launch, all from its seed.
#pragma once
#include <string>
#include <vector>

#include "attention/config.cuh"
#include "cases.h"
#include "kernels.h"

constexpr u32 MASK_WORDS_PER_ROW = KV_BLOCK / 64;

struct Case {
    explicit Case(u64 seed);

    emulator::Random random;
    AttentionParams params{};
    std::vector<u32> q_start, kv_start;
    // Bits and masks, also where the kernel gets none.
    u64* partial;
    u32* partial_start;
    std::vector<u32> tile_of;
    u64* tiles;
    float scale;
    size_t out_numbers; // of params.out, padding included
    size_t lse_numbers;
    float* lse; // params.lse, or what must stay untouched
    u32 plan_blocks;

    std::string text() const;
    u32 rows() const { return params.shape.batch * params.shape.heads * params.shape.q_blocks; }
    u32 symbol_row(u32 row) const;
    bool is_live(u32 row) const;
    bool attends(u32 row, u32 kv_block) const;
    bool attends_to_any(u32 row) const;
    // Makes output and workspace as they are before a launch.
    void clear_output();

private:
    Memory memory;

    void choose_blocks();
    void choose_symbols();
    void choose_tensors();
    void choose_forecast();
    void choose_plan();
    Tensor4 tensor(u32 heads, u32 tokens, bool is_filled, size_t& numbers);
};

// check.cpp: what must hold, or `emulator::fail`.
void check_plan(const Case& it);
void check_output(const Case& it);
