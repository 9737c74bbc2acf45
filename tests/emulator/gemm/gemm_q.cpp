// Cases of GEMM-Q, and what their output must be.
#include "gemm_q.h"

#include <cmath>

#include "numbers.h"

std::unique_ptr<Case> make_case(u64 seed) { return std::make_unique<GemmQCase>(seed); }

GemmQCase::GemmQCase(u64 seed) : Case(seed) {
    choose_blocks();
    choose_symbols();
    GemmShape& shape = gemm.shape;
    u32 inputs = operands.inputs = 8 * random.between(1, shape.heads > 6 ? 9 : random.one_in(4) ? 90 : 30);
    shape.steps = (inputs + STEP - 1) / STEP;
    shape.slots = (shape.heads + TILE_HEADS - 1) / TILE_HEADS;
    size_t ignored;
    operands.x = tensor_of_tokens(1, inputs, ignored);
    fill_tokens(operands.x, 1, inputs);
    // One head after the other: for TMA that is one matrix.
    Tensor4& w = operands.w = make_tensor(memory, random, {1, 1, shape.heads * HEAD_DIM, inputs}, ignored);
    w.head_stride = w.token_stride * HEAD_DIM;
    for (u32 row = 0; row < shape.heads * HEAD_DIM; ++row) fill_normal(random, line_of(w, 0, 0, row), inputs);
    params.out = tensor_of_tokens(shape.heads, HEAD_DIM, out_numbers);
    out = line_of(params.out, 0, 0, 0) - shape.first_token * params.out.token_stride;
    if (random.one_in(2)) params.bias = floats(shape.heads * HEAD_DIM);
    if (random.one_in(2)) params.norm = floats(HEAD_DIM);
    if (random.one_in(2)) params.rotary = floats(shape.q_tokens * HEAD_DIM);
    params.epsilon = random.one_in(2) ? 1e-6f : 0.5f;
    params.halves = random.below(2);
    choose_plan();
    params.gemm = gemm;
}

u32 GemmQCase::tiles_of_row(u32 heads, u32 slot) const { return slot * TILE_HEADS < heads ? 1 + gemm.shape.steps : 0; }

// What happens to a row of a head behind the product.
void GemmQCase::finish(std::vector<double>& y, u32 head, u32 token) const {
    for (u32 d = 0; d < HEAD_DIM && params.bias != nullptr; ++d) y[d] += params.bias[head * HEAD_DIM + d];
    if (params.norm != nullptr) {
        double squares = 0;
        for (double value : y) squares += value * value;
        for (u32 d = 0; d < HEAD_DIM; ++d) y[d] *= params.norm[d] / std::sqrt(squares / HEAD_DIM + params.epsilon);
    }
    if (params.rotary == nullptr) return;
    for (u32 pair = 0; pair < HEAD_DIM / 2; ++pair) {
        double& a = y[params.halves ? pair : 2 * pair];
        double& b = y[params.halves ? pair + HEAD_DIM / 2 : 2 * pair + 1];
        const float* turn = params.rotary + token * HEAD_DIM + 2 * pair;
        double turned = a * turn[0] - b * turn[1];
        b = b * turn[0] + a * turn[1];
        a = turned;
    }
}

void GemmQCase::expect(Expected& expected) const {
    const GemmShape& shape = gemm.shape;
    std::vector<std::vector<float>> weights;
    u32 inputs = operands.inputs;
    for (u32 row = 0; row < shape.heads * HEAD_DIM; ++row) weights.push_back(widen(line_of(operands.w, 0, 0, row), inputs));
    for (u32 batch = 0; batch < shape.batch; ++batch) {
        for (u32 local = 0; local < shape.tokens; ++local) {
            u32 token = shape.first_token + local, q_block = block_of(token);
            std::vector<float> input = widen(line_of(operands.x, batch, 0, local), inputs);
            for (u32 head = 0; head < shape.heads; ++head) {
                if (!is_in_set(batch, q_block, head)) continue;
                std::vector<double> y(HEAD_DIM, 0);
                for (u32 d = 0; d < HEAD_DIM; ++d) {
                    const float* row = weights[head * HEAD_DIM + d].data();
                    for (u32 k = 0; k < inputs; ++k) y[d] += double(input[k]) * row[k];
                }
                finish(y, head, token);
                std::string place = "batch entry " + std::to_string(batch) + ", head " + std::to_string(head) + ", q-block " +
                                    std::to_string(q_block) + ", token " + std::to_string(token);
                expected.row(line_of(params.out, batch, head, local), y, place);
            }
        }
    }
}
