// Cases of GEMM-O, and what their output must be.
#include "gemm_o.h"

#include "numbers.h"

std::unique_ptr<Case> make_case(u64 seed) { return std::make_unique<GemmOCase>(seed); }

GemmOCase::GemmOCase(u64 seed) : Case(seed) {
    choose_blocks();
    choose_symbols();
    GemmShape& shape = gemm.shape;
    bool is_small = shape.heads > 6;
    u32 further_inputs = operands.further_inputs = random.one_in(3) ? 0 : 8 * random.between(1, is_small ? 9 : 30);
    shape.steps = (further_inputs + STEP - 1) / STEP;
    shape.columns = 8 * random.between(1, is_small ? 20 : random.one_in(3) ? 70 : 30);
    shape.slots = (shape.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    choose_inputs();
    choose_outputs();
    choose_plan();
    params.gemm = gemm;
}

void GemmOCase::choose_inputs() {
    const GemmShape& shape = gemm.shape;
    size_t ignored;
    // What is not in the set is NaN: nobody may read it.
    Tensor4& o = operands.o = make_tensor(memory, random, {shape.batch, shape.heads, shape.q_tokens, HEAD_DIM}, ignored);
    for (u32 i = 0; i < shape.batch * shape.heads * shape.tokens; ++i) {
        u32 token = shape.first_token + i % shape.tokens, head = i / shape.tokens % shape.heads, batch = i / shape.tokens / shape.heads;
        if (is_in_set(batch, block_of(token), head)) fill_normal(random, line_of(o, batch, head, token), HEAD_DIM);
    }
    if (operands.further_inputs > 0) {
        operands.further = tensor_of_tokens(1, operands.further_inputs, ignored);
        fill_tokens(operands.further, 1, operands.further_inputs);
    }
    Tensor4& w = operands.w = make_tensor(memory, random, {1, 1, shape.columns, inputs()}, ignored);
    for (u32 row = 0; row < shape.columns; ++row) fill_normal(random, line_of(w, 0, 0, row), inputs());
}

void GemmOCase::choose_outputs() {
    const GemmShape& shape = gemm.shape;
    const float weights[MAX_ORDER + 1] = {1, -0.5f, 2, 0.25f, 3};
    size_t ignored;
    params.count = random.one_in(5) ? MAX_ORDER + 1 : random.below(4);
    for (u32 term = 0; term < params.count; ++term) {
        operands.terms[term] = tensor_of_tokens(1, shape.columns, ignored);
        fill_tokens(operands.terms[term], 1, shape.columns);
        params.weights[term] = weights[term];
    }
    params.out = tensor_of_tokens(1, shape.columns, out_numbers);
    out = line_of(params.out, 0, 0, 0) - shape.first_token * params.out.token_stride;
    if (random.one_in(2)) params.bias = floats(shape.columns);
}

u32 GemmOCase::tiles_of_row(u32 heads, u32) const { return 1 + heads * HEAD_STEPS + gemm.shape.steps; }

void GemmOCase::expect(Expected& expected) const {
    const GemmShape& shape = gemm.shape;
    std::vector<std::vector<float>> weights;
    for (u32 row = 0; row < shape.columns; ++row) weights.push_back(widen(line_of(operands.w, 0, 0, row), inputs()));
    for (u32 batch = 0; batch < shape.batch; ++batch) {
        for (u32 local = 0; local < shape.tokens; ++local) {
            u32 token = shape.first_token + local, q_block = block_of(token);
            std::vector<double> y(shape.columns, 0);
            auto multiply = [&](const u16* numbers, u32 count, u32 first) {
                std::vector<float> input = widen(numbers, count);
                for (u32 column = 0; column < shape.columns; ++column) {
                    const float* row = weights[column].data() + first;
                    for (u32 k = 0; k < count; ++k) y[column] += double(input[k]) * row[k];
                }
            };
            for (u32 head = 0; head < shape.heads; ++head) {
                if (is_in_set(batch, q_block, head)) multiply(line_of(operands.o, batch, head, token), HEAD_DIM, head * HEAD_DIM);
            }
            if (shape.steps > 0) multiply(line_of(operands.further, batch, 0, local), operands.further_inputs, shape.heads * HEAD_DIM);
            for (u32 term = 0; term < params.count; ++term) {
                std::vector<float> values = widen(line_of(operands.terms[term], batch, 0, local), shape.columns);
                for (u32 column = 0; column < shape.columns; ++column) y[column] += double(params.weights[term]) * values[column];
            }
            for (u32 column = 0; column < shape.columns && params.bias != nullptr; ++column) y[column] += params.bias[column];
            std::string place = "batch entry " + std::to_string(batch) + ", q-block " + std::to_string(q_block) + ", token " +
                                std::to_string(token);
            expected.row(line_of(params.out, batch, 0, local), y, place);
        }
    }
}
