"""Times attention and projections of the library under q-blocks of 64 tokens beside those of 128.

    cargo build --release --no-default-features --example capi
    python benches/peers/gpu_small_blocks.py --table table.md

Two q-blocks of 64 share the tiles that either needs, so their time depends on how alike they are. All have the same share of live blocks:

    128      blocks of 128 x 128 (projections: of 128 tokens)
    alike    blocks of 64 whose bits are those of the blocks of 128: neighbours need the same
    random   blocks of 64, each by itself: a pair needs 1.5 times as much as each of the two at s = 0.5, 1.9 times at 0.9
    cached   attention alone: no kv-block is skipped, and each q-block of 64 is cached by itself with probability s

24 heads of 128 channels, bf16, K = N = 3,072. Contestants take turns as in gpu_attention.py.
"""

import argparse

import torch

import gpu_masks
from gpu_library import Library
from gpu_timing import Timing, take_turns

HEADS, HEAD_DIM = 24, 128
WIDTH = HEADS * HEAD_DIM
SPARSITIES = (0.5, 0.9)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="target/release/examples/libcapi.so")
    parser.add_argument("--tokens", type=lambda text: [int(word) for word in text.split(",")], default=(4608, 16896, 33024))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--table", help="writes a table of all results, in Markdown")
    args = parser.parse_args()
    library = Library(args.library)
    lines = ["| | tokens | s | 128, ms | alike | random | cached |", "|---|---|---|---|---|---|---|"]
    for tokens in args.tokens:
        for kind, make in (("attention", attention), ("GEMM-Q", gemm_q), ("GEMM-O", gemm_o)):
            for s in SPARSITIES:
                calls = make(library, tokens, s)
                for call in calls.values():
                    call.plan()
                times = measured(calls, args.rounds)
                ratios = (f"{times[name] / times['128']:.2f}x" if name in times else "" for name in ("alike", "random", "cached"))
                lines.append(f"| {kind} | {tokens:,} | {s} | {times['128']:.3f} | {' | '.join(ratios)} |")
                print(lines[-1], flush=True)
    if args.table:
        with open(args.table, "w") as file:
            file.write("\n".join(lines) + "\n")


def measured(calls, rounds):
    timings = {name: Timing(call.run, 5.0, 0.0) for name, call in calls.items()}
    take_turns(timings, rounds, None)
    return {name: timing.median for name, timing in timings.items()}


def random_bits(density, *shape):
    return torch.rand(*shape, device="cuda", generator=gpu_masks.seeded(7, "cuda")) < density


def halved(bits, count, dimension):
    """The same over blocks of half the size."""
    return bits.repeat_interleave(2, dimension).narrow(dimension, 0, count).contiguous()


def attention(library, tokens, s):
    generator = gpu_masks.seeded(3, "cuda")
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD_DIM, device="cuda", generator=generator).bfloat16() for _ in range(3))
    large, small = -(-tokens // 128), -(-tokens // 64)
    keep = random_bits(1 - s, HEADS, large, large)
    every = {count: torch.ones(HEADS, count, dtype=torch.bool, device="cuda") for count in (large, small)}
    full = torch.ones(HEADS, small, small, dtype=torch.bool, device="cuda")
    return {
        "128": library.attention(q, k, v, keep, every[large]),
        "alike": library.attention(q, k, v, halved(halved(keep, small, 1), small, 2), every[small], block=64),
        "random": library.attention(q, k, v, random_bits(1 - s, HEADS, small, small), every[small], block=64),
        "cached": library.attention(q, k, v, full, random_bits(1 - s, HEADS, small), block=64),
    }


def projections(make, tokens, s):
    large, small = -(-tokens // 128), -(-tokens // 64)
    computed = random_bits(1 - s, HEADS, large)
    return {
        "128": make(computed=computed),
        "alike": make(computed=halved(computed, small, 1), block=64),
        "random": make(computed=random_bits(1 - s, HEADS, small), block=64),
    }


def operands(tokens):
    generator = gpu_masks.seeded(3, "cuda")
    x = torch.randn(tokens, WIDTH, device="cuda", generator=generator).bfloat16()
    return x, (torch.randn(WIDTH, WIDTH, device="cuda", generator=generator) * WIDTH**-0.5).bfloat16()


def gemm_q(library, tokens, s):
    x, weight = operands(tokens)
    return projections(lambda **options: library.projection(x, weight, HEADS, HEAD_DIM, **options), tokens, s)


def gemm_o(library, tokens, s):
    term, weight = operands(tokens)
    o = term.view(tokens, HEADS, HEAD_DIM).transpose(0, 1).contiguous()
    options = {"outputs": WIDTH, "terms": [(term, 0.5)]}
    return projections(lambda **others: library.projection(o, weight, HEADS, HEAD_DIM, **options, **others), tokens, s)


if __name__ == "__main__":
    main()
