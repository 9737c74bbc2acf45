"""The parts of a selector program that one would write in Triton: statistics of blocks, and the shares of blocks among themselves.

Both take q and k in one launch where they can. Blocks are of powers of two, and the last one may be shorter.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def block_of(x, out, similar, tokens, blocks, threshold, TOKENS: tl.constexpr, DIM: tl.constexpr, SIMILAR: tl.constexpr):
    """The mean of a block of tokens, and whether they resemble each other."""
    block, head = tl.program_id(0), tl.program_id(1)
    if block < blocks:
        token, channel = block * TOKENS + tl.arange(0, TOKENS), tl.arange(0, DIM)
        place = head.to(tl.int64) * tokens * DIM + token[:, None] * DIM + channel[None]
        rows = tl.load(x + place, mask=token[:, None] < tokens, other=0.0).to(tl.float32)
        count = tl.minimum(tokens - block * TOKENS, TOKENS).to(tl.float32)
        tl.store(out + (head * blocks + block) * DIM + channel, tl.sum(rows, 0) / count)
        if SIMILAR:
            norms = tl.sqrt(tl.sum(rows * rows, 1))
            unit = rows / tl.where(norms == 0.0, 1.0, norms)[:, None]
            mean = tl.sum(unit, 0) / count
            tl.store(similar + head * blocks + block, (tl.sum(mean * mean, 0) > threshold).to(tl.uint8))


@triton.jit
def pool_kernel(
    q, k, q_out, k_out, q_similar, k_similar, tokens, q_blocks, k_blocks, threshold,
    Q: tl.constexpr, K: tl.constexpr, DIM: tl.constexpr, SIMILAR: tl.constexpr,
):  # fmt: skip
    if tl.program_id(2) == 0:
        block_of(q, q_out, q_similar, tokens, q_blocks, threshold, Q, DIM, SIMILAR)
    else:
        block_of(k, k_out, k_similar, tokens, k_blocks, threshold, K, DIM, SIMILAR)


@triton.jit
def scores(rows, k, similar, first, columns, scale, WIDTH: tl.constexpr, DIM: tl.constexpr, SIMILAR: tl.constexpr):
    column, channel = first + tl.arange(0, WIDTH), tl.arange(0, DIM)
    inside = column < columns
    keys = tl.load(k + column[None] * DIM + channel[:, None], mask=inside[None], other=0.0)
    score = tl.dot(rows, keys, input_precision="tf32x3") * scale
    if SIMILAR:
        inside = inside & (tl.load(similar + column, mask=inside, other=0) != 0)
    return tl.where(inside[None], score, float("-inf"))


@triton.jit
def shares_kernel(
    q, k, similar, out, lines, columns, scale,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, SIMILAR: tl.constexpr,
):  # fmt: skip
    """Softmax of scaled dot products for some rows of a head: once for largest and sum, and once more for the shares."""
    head = tl.program_id(1)
    q, k, similar = q + head * lines * DIM, k + head * columns * DIM, similar + head * columns
    line, channel = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT), tl.arange(0, DIM)
    rows = tl.load(q + line[:, None] * DIM + channel[None], mask=line[:, None] < lines, other=0.0)
    most, total = tl.full([HEIGHT], -1e30, tl.float32), tl.zeros([HEIGHT], tl.float32)
    for first in range(0, columns, WIDTH):
        score = scores(rows, k, similar, first, columns, scale, WIDTH, DIM, SIMILAR)
        larger = tl.maximum(most, tl.max(score, 1))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(score - larger[:, None]), 1)
        most = larger
    for first in range(0, columns, WIDTH):
        score = scores(rows, k, similar, first, columns, scale, WIDTH, DIM, SIMILAR)
        share = tl.exp(score - most[:, None]) / total[:, None]
        column = first + tl.arange(0, WIDTH)
        place = (head * lines + line[:, None]) * columns + column[None]
        tl.store(out + place, share, mask=(line[:, None] < lines) & (column[None] < columns))


def pool(q, k, blocks, threshold=None):
    """Means [heads, blocks, dim] of q and k, and with a threshold what resembles itself, bool [heads, blocks]."""
    heads, tokens, dim = q.shape
    counts = [triton.cdiv(tokens, size) for size in blocks]
    means = [torch.empty(heads, count, dim, dtype=torch.float32, device=q.device) for count in counts]
    similar = [torch.empty(heads, count, dtype=torch.uint8, device=q.device) for count in counts]
    pool_kernel[(max(counts), heads, 2)](
        q, k, *means, *similar, tokens, *counts, threshold or 0.0, *blocks, dim, threshold is not None, num_warps=8
    )
    return means, [None if threshold is None else flags.view(torch.bool) for flags in similar]


def shares(q, k, similar=None):
    """softmax(q k^T / sqrt(dim)) of means, f32; columns that are not similar have none."""
    heads, lines, dim = q.shape
    columns = k.shape[1]
    out = torch.empty(heads, lines, columns, dtype=torch.float32, device=q.device)
    height, width = 16, 64
    shares_kernel[(triton.cdiv(lines, height), heads)](
        q, k, k if similar is None else similar.view(torch.uint8), out, lines, columns, dim**-0.5,
        height, width, dim, similar is not None, num_warps=4,
    )  # fmt: skip
    return out
