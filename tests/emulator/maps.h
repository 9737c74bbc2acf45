// What the wrappers of kernels for Hopper have in common: tensor maps as the host encodes them, and names of barriers.
#pragma once
#include <initializer_list>
#include <string>

#include "cases.h"
#include "common/ptx.cuh"

inline TensorMap map_of(const Tensor4& tensor, const Extent& extent, u32 rows) {
    TensorMap map{};
    map.box.data = static_cast<const u16*>(tensor.data);
    map.box.extent = {extent.columns, extent.tokens, extent.heads, extent.batch};
    map.box.stride = {1, tensor.token_stride, tensor.head_stride, tensor.batch_stride};
    map.box.rows = rows;
    return map;
}

// An array of barriers in dynamic shared memory.
struct BarrierArray {
    const char* name;
    size_t first, bytes;
};
#define BARRIERS(Plan, member) {#member, offsetof(Plan, member), sizeof(Plan::member)}

inline std::string name_in(std::initializer_list<BarrierArray> arrays, u32 offset) {
    for (const BarrierArray& array : arrays) {
        if (offset < array.first || offset >= array.first + array.bytes) continue;
        return std::string(array.name) + "[" + std::to_string((offset - array.first) / sizeof(u64)) + "]";
    }
    return "";
}
