// One random case of attention: shapes, symbols, tensors and a launch, all from its seed.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "attention/config.cuh"
#include "kernels.h"
#include "random.h"

constexpr u32 MASK_WORDS_PER_ROW = KV_BLOCK / 64;

// Memory of the device: every array begins at a multiple of 64 bytes and lives as long as the case.
class Memory {
public:
    template <class T>
    T* array(size_t count, u8 byte) {
        size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
        void* pointer = std::aligned_alloc(64, bytes);
        arrays.emplace_back(pointer, std::free);
        std::memset(pointer, byte, bytes);
        return static_cast<T*>(pointer);
    }

    template <class T>
    T* copy(const std::vector<T>& values) {
        T* own = array<T>(values.size(), 0);
        std::memcpy(own, values.data(), values.size() * sizeof(T));
        return own;
    }

private:
    std::vector<std::unique_ptr<void, void (*)(void*)>> arrays;
};

// What was never written by the kernel.
constexpr u8 UNTOUCHED = 0xFF;

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
