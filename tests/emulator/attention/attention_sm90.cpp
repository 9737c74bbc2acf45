// runtime_kernels/attention/attention_sm90.cu for the emulator, and the names of its barriers.
#define EMULATOR_SHARED
#include "cuda.h"

#define memory (*dynamic_shared_memory)
#include "attention/attention_sm90.cu"
#undef memory

#include "kernels.h"
#include "maps.h"

static std::string name_of(u32 offset) {
#define ARRAY(member) BARRIERS(SharedMemoryPlan, member)
    return name_in({ARRAY(q_full), ARRAY(q_empty), ARRAY(k_full), ARRAY(k_empty), ARRAY(v_full), ARRAY(v_empty), ARRAY(slot_full),
                    ARRAY(slot_empty)},
                   offset);
#undef ARRAY
}

// With tensor maps as src/kernels encodes them.
static void run(const AttentionParams& params) {
    const Shape& shape = params.shape;
    const Extent queries = {shape.batch, shape.heads, shape.q_tokens, HEAD_DIM};
    const Extent keys = {shape.batch, shape.kv_heads, shape.kv_tokens, HEAD_DIM};
    attention(params, map_of(params.q, queries, Q_BLOCK), map_of(params.k, keys, KV_BLOCK), map_of(params.v, keys, KV_BLOCK),
              map_of(params.out, queries, 16));
}

const AttentionKernel ATTENTION = {THREADS, sizeof(SharedMemoryPlan), run, name_of};
