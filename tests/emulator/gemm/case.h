// One random case of a projection, all from its seed: what GEMM-Q and GEMM-O have in common.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "gemm/config.cuh"
#include "kernels.h"

struct Case {
    explicit Case(u64 seed) : random(seed) {}
    virtual ~Case() = default;

    emulator::Random random;
    GemmParams gemm{};
    std::vector<u32> q_start; // also where the kernel gets none
    u32 plan_blocks;
    size_t out_numbers; // all that is allocated, what must stay untouched included
    u16* out;

    std::string text() const;
    u32 rows() const {
        const GemmShape& shape = gemm.shape;
        return shape.batch * ((shape.q_blocks + Q_PARTS - 1) / Q_PARTS) * shape.slots;
    }
    u32 last_token() const { return gemm.shape.first_token + gemm.shape.tokens; }
    // Whether a q-block has tokens of the projection, and the block of a token.
    bool is_inside(u32 q_block) const;
    u32 block_of(u32 token) const;
    // Whether the tile of a head is in the set.
    bool is_in_set(u32 batch, u32 q_block, u32 head) const;
    // The length that the plan must give to a row.
    virtual u32 tiles_of_row(u32 heads, u32 slot) const = 0;
    // Makes output and workspace as they are before a launch.
    void clear_output();
    // What must hold, or `emulator::fail`: the plan; what the kernel has written, and that it has written nothing else.
    void check_plan() const;
    void check_output() const;

protected:
    // What the output must hold.
    class Expected {
    public:
        explicit Expected(const Case& it) : it(it), is_written(it.out_numbers, false) {}
        // Compares one row.
        void row(const u16* out, const std::vector<double>& values, const std::string& place);
        // All the rest is untouched.
        void finish() const;

    private:
        const Case& it;
        std::vector<bool> is_written;
    };

    Memory memory;

    // Sizes, tokens, symbols. Where there are many heads, all else is small.
    void choose_blocks();
    void choose_symbols();
    // Once the shape is known.
    void choose_plan();
    // A tensor of all tokens; its first number is that of the first token of the projection.
    Tensor4 tensor_of_tokens(u32 heads, u32 columns, size_t& numbers);
    // Its rows of the projection's tokens get numbers.
    void fill_tokens(const Tensor4& tensor, u32 heads, u32 columns);
    const float* floats(size_t count);
    virtual void expect(Expected& expected) const = 0;
};

// A row of numbers of the launch's type.
std::vector<float> widen(const u16* numbers, u32 count);

// Of the kernel that the program is linked with.
std::unique_ptr<Case> make_case(u64 seed);
