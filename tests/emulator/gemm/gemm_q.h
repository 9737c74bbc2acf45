// A case of GEMM-Q.
#pragma once
#include "case.h"

struct GemmQCase final : Case {
    explicit GemmQCase(u64 seed);

    GemmQParams params{};
    GemmQOperands operands{};

    u32 tiles_of_row(u32 heads, u32 slot) const override;

private:
    void expect(Expected& expected) const override;
    void finish(std::vector<double>& y, u32 head, u32 token) const;
};
