"""Block masks for gpu_attention.py, each from a seed, so that all contestants get the same bits.

A mask is bool [heads, q_blocks, kv_blocks] over blocks of 128 x 128 tokens, True where a block is live. `sparsity` is
the share of blocks that are skipped; what comes out is a little denser or sparser, and throughput is counted on what
came out.
"""

import itertools
import math

import torch

BLOCK = 128
KINDS = ("random", "sliding", "skewed")


def blocks(tokens):
    return (tokens + BLOCK - 1) // BLOCK


def block_lengths(tokens, device):
    """Tokens of each block [blocks], float64: all but the last have 128."""
    lengths = torch.full((blocks(tokens),), float(BLOCK), dtype=torch.float64, device=device)
    lengths[-1] = tokens - BLOCK * (len(lengths) - 1)
    return lengths


def block_mask(kind, sparsity, heads, tokens, device):
    count = blocks(tokens)
    if sparsity == 0:
        return torch.ones(heads, count, count, dtype=torch.bool, device=device)
    if kind == "random":
        return random_mask(1 - sparsity, heads, count, device)
    if kind == "skewed":
        return skewed_mask(1 - sparsity, heads, count, device)
    return sliding_mask(1 - sparsity, count, device).expand(heads, -1, -1).contiguous()


def random_mask(density, heads, count, device):
    """Each block by itself; the first kv-block is always live, as where a prompt stands first."""
    draw = torch.rand(heads, count, count, device=device, generator=seeded(1, device))
    keep = draw < density
    keep[..., 0] = True
    return keep


def skewed_mask(density, heads, count, device):
    """Heads differ by a factor of twelve, in no order; some rows have no live block at all."""
    generator = seeded(2, device)
    shares = torch.linspace(0.15, 1.85, heads, device=device)[torch.randperm(heads, device=device, generator=generator)]
    shares = shares * density
    for _ in range(20):  # what heads above 1 cannot take goes to the others
        shares = (shares.clamp(max=1) * (density / shares.clamp(max=1).mean())).clamp(max=1)
    return torch.rand(heads, count, count, device=device, generator=generator) < shares[:, None, None]


def sliding_mask(density, count, device):
    """Sliding tile attention: blocks are tiles of a video (frames, rows, columns), and each sees a window of tiles
    around it that is pushed inward at the borders. Grid and window are those nearest to a cube and to the density."""
    grid = nearest_grid(count)
    windows = itertools.product(*(range(1, size + 1) for size in grid))
    cells = math.prod(grid)

    def distance(window):
        shares = [width / size for width, size in zip(window, grid)]
        return round(abs(math.prod(window) / cells - density), 2), max(shares) / min(shares)

    window = min(windows, key=distance)
    index = torch.arange(count, device=device)
    keep = torch.ones(count, count, dtype=torch.bool, device=device)
    for axis, (size, width) in enumerate(zip(grid, window)):
        at = index // math.prod(grid[axis + 1 :]) % size
        first = (at - width // 2).clamp(0, size - width)
        keep &= (at[None] >= first[:, None]) & (at[None] < first[:, None] + width)
    return keep


def nearest_grid(count):
    """Three sizes with a product of `count` to 6% more, nearest to a cube; the tiles beyond `count` are left out."""
    sizes = range(1, count + 1)
    most = max(count * 106 // 100, count)
    grids = (
        (frames, rows, columns)
        for frames in sizes
        if frames**3 <= most
        for rows in range(frames, most // frames + 1)
        if frames * rows**2 <= most
        for columns in range(max(rows, -(-count // (frames * rows))), most // (frames * rows) + 1)
    )
    return min(grids, key=lambda grid: (grid[2] / grid[0], math.prod(grid)))


def cached_blocks(share, heads, tokens, device):
    """S_c as bool [heads, q_blocks], True where a q-block is computed; `share` of each head's are cached."""
    count = blocks(tokens)
    order = torch.rand(heads, count, device=device, generator=seeded(3, device)).argsort(-1).argsort(-1)
    return order >= round(share * count)


def seeded(seed, device):
    return torch.Generator(device=device).manual_seed(seed)
