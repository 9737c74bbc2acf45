// A case of GEMM-O.
#pragma once
#include "case.h"

struct GemmOCase final : Case {
    explicit GemmOCase(u64 seed);

    GemmOParams params{};
    GemmOOperands operands{};

    u32 inputs() const { return gemm.shape.heads * HEAD_DIM + operands.further_inputs; }
    u32 tiles_of_row(u32 heads, u32 slot) const override;

private:
    void expect(Expected& expected) const override;
    void choose_inputs();
    void choose_outputs();
};
