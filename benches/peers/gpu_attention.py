"""Times the attention of the library on a GPU beside cuDNN, FlashAttention-4, FlashAttention-2 and FlexAttention.

    cargo build --release --no-default-features --example capi
    python benches/peers/gpu_attention.py --quick
    python benches/peers/gpu_attention.py --tokens 4608,16896 --output gpu.json     # goes on where it stopped
    python benches/peers/gpu_report.py gpu.json --table table.md --plot plot.svg

All contestants take turns in one process, on the same tensors of normally distributed numbers and the same masks: a
round is one measurement of each, and the order rotates from round to round. A measurement is a CUDA graph of so many
launches that it takes about `--work` ms, between two events. What is said of a contestant is the median of its rounds.
TFLOP/s count 4 * head_dim operations for each pair of a query and a key in a live block that is not cached, real
tokens only.

At lengths whose keys and values fit the second-level cache, `cold_ms` tells a single launch after 512 MiB were
written. Each output is compared with float64 on sampled rows: a contestant that computes something else is none.
"""

import argparse
import itertools
import time

import torch

import gpu_masks
from gpu_contestants import ALL, Contestants, Inputs
from gpu_timing import Sensor, Timing, cold_ms, load, save, take_turns

TOKENS = (4608, 16896, 33024, 118800)
HEADS = (24, 40)
HEAD_DIMS = (64, 128)
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
CACHED = (0.0, 0.5, 0.8)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
COLD_UP_TO = 8192  # tokens
SAMPLED_ROWS = 64


def main():
    args = arguments()
    torch.manual_seed(0)
    contestants = Contestants(args.peers, args.library, args.kernels)
    for name, why in contestants.missing.items():
        print(f"without {name}: {why}", flush=True)
    results = load(args.output)
    started = time.monotonic()
    sensor = Sensor()
    about = machine(contestants)
    for shape, cells in itertools.groupby(wanted(args), key=lambda cell: cell[:4]):
        open_cells = [cell for cell in cells if args.again or key_of(cell) not in results]
        if not open_cells:
            continue
        tensors = operands(shape, args.dtype)
        for cell in open_cells:
            if args.minutes and time.monotonic() - started > 60 * args.minutes:
                print(f"time is over; the same command goes on from {args.output}")
                return
            measured = measure(cell, tensors, contestants, sensor, args)
            results[key_of(cell)] = dict(zip(FIELDS, cell)) | measured | {"machine": about}
            save(args.output, results)
            print(line(cell, measured), flush=True)
        del tensors
        torch.cuda.empty_cache()
    print(f"{len(results)} cells in {args.output}")


def numbers(kind):
    """Reads a list with commas between."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def folders(text):
    """Reads a list of NAME=FOLDER with commas between."""
    return dict(part.split("=", 1) for part in text.split(","))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="target/release/examples/libcapi.so")
    parser.add_argument("--output", default="gpu_attention.json", help="results; their cells are not measured again")
    parser.add_argument("--again", action="store_true", help="measure them again")
    parser.add_argument("--quick", action="store_true", help="two lengths, 24 heads, head_dim 128, three sparsities")
    parser.add_argument("--tokens", type=numbers(int))
    parser.add_argument("--heads", type=numbers(int))
    parser.add_argument("--head-dim", type=numbers(int))
    parser.add_argument("--sparsity", type=numbers(float))
    parser.add_argument("--cached", type=numbers(float))
    parser.add_argument("--masks", type=numbers(str))
    parser.add_argument("--only", default="", help="cells whose name contains this, as in 'mask=skewed s=0.5'")
    parser.add_argument("--peers", type=numbers(str), default=ALL, help=f"some of {','.join(ALL)}")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--work", type=float, default=10.0, help="ms of one measurement")
    parser.add_argument("--kernels", type=folders, default={}, help="NAME=FOLDER,...: ours with the kernels of a folder")
    parser.add_argument("--pause", type=float, default=0.0, help="ms before each measurement, for a clock that stays up")
    parser.add_argument("--minutes", type=float, help="begin no cell after so many minutes")
    args = parser.parse_args()
    quick = args.quick
    args.tokens = args.tokens or ((4608, 16896) if quick else TOKENS)
    args.heads = args.heads or ((24,) if quick else HEADS)
    args.head_dim = args.head_dim or ((128,) if quick else HEAD_DIMS)
    args.sparsity = args.sparsity or ((0.0, 0.5, 0.9) if quick else SPARSITIES)
    args.cached = args.cached or ((0.0,) if quick else CACHED)
    args.masks = args.masks or (("random",) if quick else gpu_masks.KINDS)
    args.rounds = args.rounds or (5 if quick else 9)
    return args


# A cell is one row of the table.

FIELDS = ("dtype", "tokens", "heads", "head_dim", "mask", "s", "cached")


def wanted(args):
    """Cells in the order of their shapes, dense ones first. Without sparsity all masks are one."""
    shapes = itertools.product([args.dtype], args.tokens, args.heads, args.head_dim)
    for shape in shapes:
        for sparsity, cached in itertools.product(args.sparsity, args.cached):
            for mask in args.masks if sparsity else ("none",):
                cell = (*shape, mask, sparsity, cached)
                if args.only in key_of(cell):
                    yield cell


def key_of(cell):
    return " ".join(f"{field}={value}" for field, value in zip(FIELDS, cell))


def operands(shape, dtype):
    _, tokens, heads, head_dim = shape
    generator = gpu_masks.seeded(7, "cuda")
    return [
        torch.randn(1, heads, tokens, head_dim, device="cuda", generator=generator).to(DTYPES[dtype]) for _ in range(3)
    ]


def live_pairs(inputs):
    """Pairs of a query and a key in live blocks that are not cached, over all heads."""
    lengths = gpu_masks.block_lengths(inputs.q.shape[2], inputs.q.device)
    return sum(float(lengths @ head.double() @ lengths) for head in inputs.live)


def measure(cell, tensors, contestants, sensor, args):
    _, tokens, heads, head_dim, mask, sparsity, cached = cell
    keep = gpu_masks.block_mask(mask, sparsity, heads, tokens, "cuda")
    inputs = Inputs(*tensors, keep, gpu_masks.cached_blocks(cached, heads, tokens, "cuda"))
    made, errors, timings, failed = contestants.of(inputs, dense=sparsity == 0 and cached == 0), {}, {}, {}
    for name, contestant in list(made.items()):
        try:
            contestant.plan()
            timings[name] = Timing(contestant.run, args.work, args.pause)
            errors[name] = error_of(timings[name].fresh_output(), inputs)
        except Exception as error:  # a peer without this shape; ours has every one
            if name == "ours":
                raise
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            del made[name]
            timings.pop(name, None)
    take_turns(timings, args.rounds, sensor)
    flops = 4.0 * head_dim * live_pairs(inputs)
    result = {
        "live": flops / (4.0 * head_dim * heads * tokens**2),
        "computed": inputs.computed.double().mean().item(),
        "rounds": len(next(iter(timings.values())).times),
        "contestants": {name: timing.summary(flops) | {"error": errors[name]} for name, timing in timings.items()},
    }
    if failed:
        result["failed"] = failed
    if tokens <= COLD_UP_TO:
        for name, contestant in made.items():
            result["contestants"][name]["cold_ms"] = cold_ms(contestant.run)
    if "ours" in made:
        plan = Timing(made["ours"].plan, 1.0, 0.0)
        take_turns({"plan": plan}, args.rounds, None)
        result["contestants"]["ours"]["plan_ms"] = plan.median
    return result


def error_of(output, inputs):
    """Frobenius norm of the difference from float64 over that of the result, on sampled rows of two heads."""
    heads, tokens, head_dim = inputs.q.shape[1:]
    rows = torch.randperm(tokens, device="cuda", generator=gpu_masks.seeded(5, "cuda"))[: SAMPLED_ROWS * 4]
    block_of = torch.arange(tokens, device="cuda") // gpu_masks.BLOCK
    difference = total = 0.0
    for head in {0, heads - 1}:
        live = inputs.live[head]
        chosen = rows[live[block_of[rows]].any(-1)][:SAMPLED_ROWS]
        scores = inputs.q[0, head, chosen].double() @ inputs.k[0, head].double().T / head_dim**0.5
        scores.masked_fill_(~live[block_of[chosen]][:, block_of], float("-inf"))
        expected = scores.softmax(-1) @ inputs.v[0, head].double()
        difference += (output[0, head, chosen].double() - expected).square().sum().item()
        total += expected.square().sum().item()
    return (difference / total) ** 0.5 if total else 0.0


# Results.


def machine(contestants):
    cudnn = torch.backends.cudnn.version()
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}",
    } | contestants.versions


def line(cell, measured):
    parts = [key_of(cell).ljust(78), f"live {measured['live']:.3f}"]
    for name, of in measured["contestants"].items():
        parts.append(f"{name} {of['ms']:.4f} ms {of['tflops']:.0f} TFLOP/s error {of['error']:.0e}")
    parts += [f"{name} failed: {why}" for name, why in measured.get("failed", {}).items()]
    return " | ".join(parts)


if __name__ == "__main__":
    main()
