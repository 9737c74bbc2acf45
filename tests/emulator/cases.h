// What random cases of all kernels are made of: memory of the device, blocks of tokens, tensors, bits.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "params.cuh"
#include "random.h"

// What was never written by the kernel.
constexpr u8 UNTOUCHED = 0xFF;

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

inline u64 bit(u32 index) { return 1ull << index % 64; }
inline bool has(const u64* words, u32 index) { return words[index / 64] & bit(index); }
inline u32 words_for(u32 bits) { return (bits + 63) / 64; }

// Starts of blocks of `size` tokens, the last one shorter if need be.
std::vector<u32> regular_blocks(u32 tokens, u32 size);
// Starts of `count` blocks, of which one in `shorter` has any length and the others are full.
std::vector<u32> irregular_blocks(emulator::Random& random, u32 count, u32 size, u32 shorter = 3);

// The sizes of a tensor.
struct Extent {
    u32 batch, heads, tokens, columns;
};

// Heads before tokens or after them, with or without padding between rows, nothing written yet. `numbers` counts all of them.
Tensor4 make_tensor(Memory& memory, emulator::Random& random, const Extent& extent, size_t& numbers);

// Normal numbers from a table: they need not be independent, and logarithms take time.
void fill_normal(emulator::Random& random, u16* numbers, u32 count);

inline u16* line_of(const Tensor4& tensor, u32 batch, u32 head, u32 token) {
    return static_cast<u16*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride + token * tensor.token_stride;
}
