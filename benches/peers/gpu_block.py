"""Times whole attention blocks of the library over a schedule beside the same block in PyTorch, computed in full.

    cargo build --release --features llvm-static --example capi
    python benches/peers/gpu_block.py --output block.json        # goes on where it stopped
    python benches/peers/gpu_block.py --cases flux_1k --strategies flashomni_half

A block: projections to queries, keys and values, RMSNorm of heads, rotary embedding, attention, output projection; 24 heads of
128 channels, bf16, no text stream of its own. `torch` has the three projections in one cuBLAS product, norm and rotary
embedding by torch.compile, attention by cuDNN or FlashAttention-2, whichever is faster, and cuBLAS for the output. One layer runs all
steps of its schedule; the two take turns, schedule by schedule, on the same inputs and weights, and the median of the rounds
counts. Each step's time is between two events in the stream, so that the host's work shows where it holds the GPU up.

`promised` is the speed-up by multiplications: those of a block in full, over those of live tiles at each step (queries, keys,
values, live pairs of blocks, live heads of the output projection). Selection, forecasts and updates are no multiplications.
"""

import argparse
import ctypes
import itertools
import pathlib
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_library import Library, Strategy
from gpu_timing import kernels_of, load, save

ROOT = pathlib.Path(__file__).parents[2]
HEADS, HEAD_DIM, STEPS = 24, 128, 50
WIDTH = HEADS * HEAD_DIM

# Tokens: text, then a picture or a video.
CASES = {
    "flux_1k": ("flux1_dev", "layers=1", 512 + 64 * 64),
    "flux_2k": ("flux1_dev_2k", "layers=1", 512 + 128 * 128),
    "hunyuan_33k": ("flux1_dev_2k", "layers=1;text=256;image.h=128;image.w=256", 256 + 128 * 256),
}

# File, strategy, parameters. Shares of random queries and keys are not those of a model: `flashomni_half` is tuned to leave
# out 46% of the work in the mean over all steps.
STRATEGIES = {
    "flashomni": ("flashomni", "flashomni", "block_size:128"),
    "flashomni_half": ("flashomni", "flashomni", "block_size:128;exponent:0.0;tau_q:0.8;tau_kv:0.35;first_enhance:6"),
    "flashomni_half_64": ("flashomni", "flashomni", "block_size:64;exponent:0.0;tau_q:0.8;tau_kv:0.35;first_enhance:6"),
    "taylorseer": ("taylorseer", "taylorseer", ""),
    "sparge_topk": ("sparge", "sparge_topk", ""),
    "longformer": ("longformer", "longformer", ""),
}


class Block(ctypes.Structure):
    _fields_ = (
        [("strategy", Strategy)]
        + [(name, ctypes.c_uint64) for name in ("inputs", "outputs")]
        + [(name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "norm", "rotary")]
        + [("is_bf16", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]
    )


class Session:
    """A generation of the library on PyTorch's current stream."""

    def __init__(self, library, case, strategy, weights, norm, rotary):
        self.c, self.done = library.c, library.done
        pointer = ctypes.c_void_p
        for name, result, arguments in (
            ("omni_session", pointer, [pointer, ctypes.POINTER(Block), pointer]),
            ("omni_block_step", ctypes.c_int, [pointer, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64]),
            ("omni_shares", ctypes.c_int, [pointer, ctypes.c_uint32, pointer]),
            ("omni_session_bytes", ctypes.c_uint64, [pointer]),
            ("omni_reset", ctypes.c_int, [pointer]),
            ("omni_end", None, [pointer]),
        ):
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        file, name, parameters = strategy
        source = (ROOT / "examples" / "strategies" / f"{file}.omni").read_bytes()
        model, sizes, _ = case
        host = [weight.cpu().view(torch.int16).contiguous() for weight in weights]
        norm, rotary = norm.cpu().contiguous(), rotary.cpu().contiguous()
        problem = Block(
            Strategy(source, name.encode(), model.encode(), f"{sizes};{parameters}".encode()), WIDTH, WIDTH,
            *(weight.data_ptr() for weight in host), norm.data_ptr(), rotary.data_ptr(), 1, 0,
        )  # fmt: skip
        torch.cuda.synchronize()
        stream = torch.cuda.current_stream().cuda_stream
        self.pointer = library.made(self.c.omni_session(library.kernels, ctypes.byref(problem), stream))

    def step(self, step, x, out):
        letter = self.c.omni_block_step(self.pointer, step, 0, x.data_ptr(), out.data_ptr())
        if letter < 0:
            self.done(1)
        return chr(letter)

    def shares(self):
        shares = (ctypes.c_double * 2)()
        self.done(self.c.omni_shares(self.pointer, 0, shares))
        return tuple(shares)

    def reset(self):
        self.done(self.c.omni_reset(self.pointer))

    def gigabytes(self):
        return self.c.omni_session_bytes(self.pointer) / 1e9

    def __del__(self):
        if getattr(self, "pointer", None):
            torch.cuda.synchronize()
            self.c.omni_end(self.pointer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="target/release/examples/libcapi.so")
    parser.add_argument("--output", default="gpu_block.json", help="results; their cells are not measured again")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--strategies", type=lambda text: text.split(","), default=list(STRATEGIES))
    parser.add_argument("--table", help="writes a table of all results, in Markdown")
    parser.add_argument("--profile", action="store_true", help="prints the time of each kernel, for one step of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    library, results = Library(args.library), load(args.output)
    for name in args.cases:
        inputs = Inputs(CASES[name][2])
        for strategy in args.strategies:
            if args.profile:
                profile(library, CASES[name], STRATEGIES[strategy], inputs, f"{name} {strategy}")
                continue
            key = f"{name} {strategy}"
            if key not in results:
                try:
                    results[key] = measure(library, CASES[name], STRATEGIES[strategy], inputs, args.rounds)
                except RuntimeError as error:
                    print(f"{key}: {error}", flush=True)
                    continue
                save(args.output, results)
            print(line(key, results[key]), flush=True)
    if args.table:
        with open(args.table, "w") as file:
            file.write(table(results))


class Inputs:
    """Weights, tables and the inputs of each step: those of a step resemble those of the one before."""

    def __init__(self, tokens):
        generator = torch.Generator("cuda").manual_seed(5)

        def normal(*shape):
            return torch.randn(*shape, device="cuda", generator=generator)

        self.tokens = tokens
        self.weights = [(normal(WIDTH, WIDTH) * WIDTH**-0.5).bfloat16() for _ in range(4)]
        self.norm = 1 + 0.1 * normal(HEAD_DIM)
        angles = torch.arange(tokens, device="cuda")[:, None] * 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, device="cuda")
        self.rotary = torch.stack((angles.cos(), angles.sin()), -1).contiguous()
        base = normal(tokens, WIDTH)
        drift = normal(tokens, WIDTH)
        self.xs = [(base + 0.01 * step * drift).bfloat16() for step in range(4)]

    def x(self, step):
        return self.xs[step % len(self.xs)]


def measure(library, case, strategy, inputs, rounds):
    session = Session(library, case, strategy, inputs.weights, inputs.norm, inputs.rotary)
    dense, out = Dense(inputs), torch.empty_like(inputs.x(0))
    letters, shares = "", []
    for step in range(STEPS):  # compiles, and says what each step does
        letter = session.step(step, inputs.x(step), out)
        letters += letter
        shares.append((1.0, 1.0) if letter in "DU" else (0.0, 0.0) if letter.isdigit() else session.shares())
    error = None
    if letters[0] in "DU":
        session.reset()
        session.step(0, inputs.x(0), out)
        wanted = dense(inputs.x(0))
        error = ((out.double() - wanted.double()).norm() / wanted.double().norm()).item()
    ours, torchs = [], []
    own_dense = OwnDense(library, case, inputs, out)
    for _ in range(rounds):
        session.reset()
        ours.append(timed(lambda step: session.step(step, inputs.x(step), out)))
        torchs.append(timed(lambda step: dense(inputs.x(step))))
        own_dense.round()
    by_step = [statistics.median(times) for times in zip(*ours)]
    kinds = {}
    for letter, time in zip(letters, by_step):
        kinds.setdefault(letter, []).append(time)
    promised = STEPS / sum(cost(inputs.tokens, letter, *share) for letter, share in zip(letters, shares))
    work = [share[1] for share in shares]
    return {
        "letters": letters,
        "tokens": inputs.tokens,
        "error": error,
        "sparsity": 1 - sum(work) / STEPS,
        "ms": statistics.median(sum(times) for times in ours),
        "torch_ms": statistics.median(sum(times) for times in torchs),
        "kinds": {letter: statistics.median(times) for letter, times in kinds.items()},
        "torch_step": statistics.median(itertools.chain(*torchs)),
        "own_step": own_dense.median(),
        "promised": promised,
        "gigabytes": session.gigabytes(),
    }


class OwnDense:
    """The library's own block in full, in the same rounds."""

    def __init__(self, library, case, inputs, out):
        full = ("fora", "fora", "interval:1")
        self.session = Session(library, case, full, inputs.weights, inputs.norm, inputs.rotary)
        self.inputs, self.out, self.times = inputs, out, []

    def round(self):
        self.session.reset()
        self.times += timed(lambda step: self.session.step(step, self.inputs.x(step), self.out))

    def median(self):
        return statistics.median(self.times)


def cost(tokens, letter, computed, live):
    """Multiplications of a step over those of a block in full."""
    projection, attention = tokens * WIDTH * WIDTH, 2 * tokens * tokens * WIDTH
    if letter.isdigit():
        return 0.0
    if letter in "DU":
        computed = live = 1.0
    kept = projection * (2 + 2 * computed) + attention * live
    return kept / (4 * projection + attention)


def profile(library, case, strategy, inputs, name):
    """Prints what each kernel takes in the last step of each kind but the first, whose kernels may be new."""
    session, out = Session(library, case, strategy, inputs.weights, inputs.norm, inputs.rotary), torch.empty_like(inputs.x(0))
    letters = "".join(session.step(step, inputs.x(step), out) for step in range(STEPS))
    session.reset()
    wanted = {letters.rindex(letter, 0, STEPS - 1): letter for letter in set(letters[:-1])}
    for step in range(STEPS):
        if step not in wanted:
            session.step(step, inputs.x(step), out)
            continue
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            session.step(step, inputs.x(step), out)
            torch.cuda.synchronize()
        kernels = kernels_of(recorded)
        whole = sum(kernel.device_time for kernel in kernels)
        parts = ", ".join(f"{kernel.name} {kernel.device_time:.0f}" for kernel in kernels)
        print(f"{name}, step {step} ({wanted[step]}): {whole:.0f} us in kernels: {parts}", flush=True)


def timed(step):
    """ms of each step."""
    events = [torch.cuda.Event(True) for _ in range(STEPS + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for index in range(STEPS):
        step(index)
        events[index + 1].record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in zip(events, events[1:])]


class Dense:
    """The block in PyTorch."""

    def __init__(self, inputs):
        q, k, v, self.out = inputs.weights
        self.qkv = torch.cat((q, k, v))
        norm, cosine, sine = inputs.norm, *(part[None] for part in inputs.rotary.unbind(-1))

        def turned(x):
            x = x.float()
            x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cosine - b * sine, b * cosine + a * sine), -1).flatten(-2).bfloat16()

        @torch.compile
        def split(qkv):
            q, k, v = (part.unflatten(1, (HEADS, HEAD_DIM)).transpose(0, 1) for part in qkv.chunk(3, -1))
            return turned(q)[None], turned(k)[None], v.contiguous()[None]

        self.split = split
        q, k, v = split(F.linear(inputs.x(0), self.qkv))
        times = {}
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend):
                for _ in range(3):
                    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
                    start.record()
                    F.scaled_dot_product_attention(q, k, v)
                    end.record()
                    torch.cuda.synchronize()
                times[backend] = start.elapsed_time(end)
        self.backend = min(times, key=times.get)

    def __call__(self, x):
        q, k, v = self.split(F.linear(x, self.qkv))
        with sdpa_kernel(self.backend):
            o = F.scaled_dot_product_attention(q, k, v)
        return F.linear(o[0].transpose(0, 1).flatten(1), self.out)


def table(results):
    lines = [
        "| shape, strategy | sparsity | ms of 50 steps | of PyTorch | against PyTorch | against our own dense | promised | of it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, result in results.items():
        own, promised = result["own_step"] * STEPS / result["ms"], result["promised"]
        lines.append(
            f"| {key} | {result['sparsity']:.2f} | {result['ms']:.1f} | {result['torch_ms']:.1f} | "
            f"{result['torch_ms'] / result['ms']:.2f}x | {own:.2f}x | {promised:.2f}x | {own / promised:.0%} |"
        )
    return "\n".join(lines) + "\n"


def line(key, result):
    full = result["own_step"]
    own = full * STEPS / result["ms"]
    parts = [
        key.ljust(26),
        result["letters"],
        f"sparsity {result['sparsity']:.2f}",
        f"{result['ms']:.1f} ms, torch {result['torch_ms']:.1f}: {result['torch_ms'] / result['ms']:.2f}x",
        f"own dense {own:.2f}x of {result['promised']:.2f}x promised: {own / result['promised']:.2f}",
        "steps " + " ".join(f"{letter} {time:.3f}" for letter, time in result["kinds"].items()) + f" own {full:.3f} torch {result['torch_step']:.3f}",
        f"{result['gigabytes']:.2f} GB",
    ]
    if result["error"] is not None:
        parts.append(f"error {result['error']:.0e}")
    return " | ".join(parts)


if __name__ == "__main__":
    main()
