// runtime_kernels/attention/attention_sm90.cu for the emulator, and the names of its barriers.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "attention/attention_sm90.cu"
#undef memory

#include "kernels.h"

static std::string name_of(u32 offset) {
    struct Array {
        const char* name;
        size_t first, bytes;
    };
#define ARRAY(member) {#member, offsetof(SharedMemoryPlan, member), sizeof(SharedMemoryPlan::member)}
    const Array arrays[] = {ARRAY(q_full), ARRAY(q_empty), ARRAY(k_full), ARRAY(k_empty), ARRAY(v_full), ARRAY(v_empty),
                            ARRAY(slot_full), ARRAY(slot_empty)};
#undef ARRAY
    for (const Array& array : arrays) {
        if (offset < array.first || offset >= array.first + array.bytes) continue;
        return std::string(array.name) + "[" + std::to_string((offset - array.first) / sizeof(u64)) + "]";
    }
    return "";
}

static TensorMap map_of(const Tensor4& tensor, const Shape& shape, u32 heads, u32 tokens, u32 rows) {
    TensorMap map{};
    map.box.data = static_cast<const u16*>(tensor.data);
    map.box.extent = {HEAD_DIM, tokens, heads, shape.batch};
    map.box.stride = {1, tensor.token_stride, tensor.head_stride, tensor.batch_stride};
    map.box.rows = rows;
    return map;
}

// With tensor maps as src/kernels encodes them.
static void run(const AttentionParams& params) {
    const Shape& shape = params.shape;
    TensorMap q = map_of(params.q, shape, shape.heads, shape.q_tokens, BLOCK_Q);
    TensorMap k = map_of(params.k, shape, shape.kv_heads, shape.kv_tokens, KV_BLOCK);
    TensorMap v = map_of(params.v, shape, shape.kv_heads, shape.kv_tokens, KV_BLOCK);
    TensorMap out = map_of(params.out, shape, shape.heads, shape.q_tokens, 16);
    attention(params, q, k, v, out);
}

const AttentionKernel ATTENTION = {THREADS, sizeof(SharedMemoryPlan), run, name_of};
