"""Times GEMM-Q and GEMM-O of the library beside cuBLAS, which computes all of the projection.

    cargo build --release --no-default-features --example capi
    python benches/peers/gpu_gemm.py --output gemm.json          # goes on where it stopped
    python benches/peers/gpu_gemm.py --quick

Contestants take turns as in gpu_attention.py, on the same normally distributed numbers in bf16. Tiles of 128 tokens and
one head are live at random with probability 1 - s. What is printed beside the times: the speed-up over cuBLAS (`x`), and
for GEMM-Q TFLOP/s on live tiles as a share of cuBLAS's. GEMM-O adds one term, the projection of what is cached. `fused` is
GEMM-Q with RMSNorm and rotary embedding.
"""

import argparse
import itertools

import torch
import torch.nn.functional as F

import gpu_masks
from gpu_library import Library
from gpu_timing import Sensor, Timing, load, save, take_turns

ROWS = (4608, 16896, 33024)
WIDTHS = (3072, 5120)
SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95)
FIELDS = ("kind", "rows", "width", "head_dim", "s")


def main():
    args = arguments()
    library = Library(args.library)
    kinds = {"ours": library} | {name: Library(args.library, folder) for name, folder in args.kernels.items()}
    results, sensor = load(args.output), Sensor()
    for rows, width in itertools.product(args.rows, args.widths):
        generator = gpu_masks.seeded(3, "cuda")
        x = torch.randn(rows, width, device="cuda", generator=generator).bfloat16()
        weight = (torch.randn(width, width, device="cuda", generator=generator) * width**-0.5).bfloat16()
        term = torch.randn(rows, width, device="cuda", generator=generator).bfloat16()
        for kind, head_dim, s in itertools.product(args.kinds, args.head_dims, args.sparsities):
            cell = (kind, rows, width, head_dim, s)
            key = " ".join(f"{field}={value}" for field, value in zip(FIELDS, cell))
            if key not in results:
                results[key] = dict(zip(FIELDS, cell)) | measure(cell, x, weight, term, kinds, sensor, args)
                save(args.output, results)
            print(line(key, results[key]), flush=True)
    if args.table:
        with open(args.table, "w") as file:
            file.write(table(results.values()))


def arguments():
    def numbers(kind):
        return lambda text: tuple(kind(part) for part in text.split(","))

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="target/release/examples/libcapi.so")
    parser.add_argument("--output", default="gpu_gemm.json", help="results; their cells are not measured again")
    parser.add_argument("--quick", action="store_true", help="K = N = 3,072 and head_dim 128 alone, three sparsities")
    parser.add_argument("--kinds", type=numbers(str), default=("q", "fused", "o"))
    parser.add_argument("--rows", type=numbers(int), default=ROWS)
    parser.add_argument("--widths", type=numbers(int))
    parser.add_argument("--head-dims", type=numbers(int))
    parser.add_argument("--sparsities", type=numbers(float))
    parser.add_argument("--table", help="writes a table of all results, in Markdown")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=float, default=5.0, help="ms of one measurement")
    parser.add_argument(
        "--kernels",
        type=lambda text: dict(part.split("=", 1) for part in text.split(",")),
        default={},
        help="NAME=FOLDER,...: ours with the kernels of a folder",
    )
    args = parser.parse_args()
    args.widths = args.widths or (WIDTHS[:1] if args.quick else WIDTHS)
    args.head_dims = args.head_dims or ((128,) if args.quick else (128, 64))
    args.sparsities = args.sparsities or ((0.0, 0.5, 0.9) if args.quick else SPARSITIES)
    return args


def measure(cell, x, weight, term, kinds, sensor, args):
    kind, rows, width, head_dim, s = cell
    heads, generator = width // head_dim, gpu_masks.seeded(11, "cuda")
    computed = torch.rand(heads, gpu_masks.blocks(rows), device="cuda", generator=generator) >= s
    is_out = kind == "o"
    by_heads = x.unflatten(1, (heads, head_dim)).transpose(0, 1).contiguous() if is_out else None
    norm = rotary = None
    if kind == "fused":
        norm = 1 + 0.1 * torch.randn(head_dim, device="cuda", generator=generator)
        angles = 6 * torch.rand(rows, head_dim // 2, device="cuda", generator=generator)
        rotary = torch.stack((angles.cos(), angles.sin()), -1).contiguous()
    made = {}
    for name, library in kinds.items():
        made[name] = library.projection(
            by_heads if is_out else x, weight, heads, head_dim,
            computed=computed if s else None, outputs=width if is_out else 0,
            terms=((term, 1.0),) if is_out and s else (), norm=norm, rotary=rotary,
        )  # fmt: skip
        made[name].plan()
    timings = {name: Timing(call.run, args.work, 0.0) for name, call in made.items()}
    timings["cublas"] = Timing(lambda: F.linear(x, weight), args.work, 0.0)
    error = error_of(made["ours"], x, weight, term, computed, cell, norm, rotary)
    take_turns(timings, args.rounds, sensor)
    lengths = gpu_masks.block_lengths(rows, "cuda")
    live = (computed * lengths).sum().item() / (heads * rows) if s else 1.0
    flops = 2.0 * rows * width * width
    plan = Timing(made["ours"].plan, 1.0, 0.0)
    take_turns({"plan": plan}, args.rounds, None)
    summaries = {name: timing.summary(flops * (1 if name == "cublas" else live)) for name, timing in timings.items()}
    return {"live": live, "error": error, "plan_ms": plan.median, "contestants": summaries}


def error_of(call, x, weight, term, computed, cell, norm, rotary):
    """Frobenius norm of the difference from float64 over that of the result, on sampled rows."""
    kind, rows, _, head_dim, s = cell
    call.out.fill_(float("nan"))
    call.run()
    chosen = torch.randperm(rows, device="cuda")[:128]
    heads = computed.shape[0]
    live = computed[:, chosen // gpu_masks.BLOCK].T if s else torch.ones(128, heads, dtype=torch.bool, device="cuda")
    own, w = x[chosen].double(), weight.double()
    if kind == "o":
        kept = (own.unflatten(1, (heads, head_dim)) * live[..., None]).flatten(1)
        wanted, found = kept @ w.T + (term[chosen].double() if s else 0), call.out[chosen].double()
    else:
        wanted = (own @ w.T).unflatten(1, (heads, head_dim))
        if norm is not None:
            wanted = wanted * (wanted.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.double()
            cosine, sine = rotary[chosen].double()[:, None].unbind(-1)
            a, b = wanted[..., 0::2], wanted[..., 1::2]
            wanted = torch.stack((a * cosine - b * sine, b * cosine + a * sine), -1).flatten(-2)
        wanted, found = wanted[live], call.out.transpose(0, 1)[chosen][live].double()
    return ((found - wanted).norm() / wanted.norm()).item()


def line(key, result):
    dense = result["contestants"]["cublas"]
    parts = [key.ljust(52), f"live {result['live']:.3f}", f"error {result['error']:.0e}", f"plan {result['plan_ms'] * 1e3:.0f} us"]
    for name, of in result["contestants"].items():
        parts.append(f"{name} {of['ms']:.4f} ms {of['tflops']:.0f} TFLOP/s")
        if name != "cublas":
            parts[-1] += f" {dense['ms'] / of['ms']:.2f}x {of['tflops'] / dense['tflops']:.3f} of live"
    return " | ".join(parts)


def table(results):
    """A row for each kind, width, number of rows and head_dim: speed-up over cuBLAS, and TFLOP/s on live tiles as a share of its own."""
    groups = {}
    for result in results:
        groups.setdefault(tuple(result[field] for field in FIELDS[:4]), {})[result["s"]] = result
    shares = sorted({s for group in groups.values() for s in group})
    lines = ["| | K = N | rows | head_dim | cuBLAS ms (TFLOP/s) | " + " | ".join(f"s = {s:g}" for s in shares) + " |"]
    lines.append("|---" * (5 + len(shares)) + "|")
    for (kind, rows, width, head_dim), group in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2], item[0][1], item[0][3])):
        dense = next(iter(group.values()))["contestants"]["cublas"]
        cells = []
        for s in shares:
            if s not in group:
                cells.append("")
                continue
            ours, cublas = (group[s]["contestants"][name] for name in ("ours", "cublas"))
            cells.append(f"{cublas['ms'] / ours['ms']:.2f}x ({ours['tflops'] / cublas['tflops']:.0%})")
        name = {"q": "GEMM-Q", "fused": "GEMM-Q, norm and rotary", "o": "GEMM-O"}[kind]
        start = f"| {name} | {width:,} | {rows:,} | {head_dim} | {dense['ms']:.3f} ({dense['tflops']:.0f}) | "
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
