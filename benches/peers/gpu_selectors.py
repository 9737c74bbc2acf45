"""Times the choice of symbols from q and k beside the same rules in PyTorch.

    cargo build --release --features llvm-static --example capi
    python benches/peers/gpu_selectors.py --output selectors.json --table table.md    # goes on where it stopped
    python benches/peers/gpu_selectors.py --profile --tokens 33024

`ours` is a selector pass of the library: examples/strategies compiled as they are, bits as attention reads them. The peers give the
same symbols as bool tensors, which is a little less work: `torch` is the rule as one writes it down in PyTorch, `compile` the same
by torch.compile, `triton` has two hand-written kernels, statistics of blocks and shares (scaled dot products and their softmax),
and the rest by torch.compile. All are captured in CUDA graphs and take turns; the median of the rounds counts.

24 heads of 128 channels in bf16, 512 tokens of text and an image. q and k are normal numbers around a mean of their own for each 128
tokens, so that scores have a spread of about one. Sums of the peers have another order: `agree` is the share of bits that are the
library's. `of dense` is our pass over our own attention in full.
"""

import argparse
import pathlib

import torch
import torch.nn.functional as F

from gpu_library import Library, Strategy, unpacked
from gpu_timing import Sensor, Timing, kernels_of, load, save, take_turns

try:
    import gpu_selectors_triton
except ImportError as error:
    print(f"without triton: {error}")
    gpu_selectors_triton = None

ROOT = pathlib.Path(__file__).parents[2]
HEADS, HEAD_DIM, TEXT, STEPS = 24, 128, 512, 50
IMAGES = {4608: (64, 64), 16896: (128, 128), 33024: (128, 254)}
PEERS = ("torch", "compile", "triton")


class Torch:
    """Statistics and shares in PyTorch."""

    @staticmethod
    def pool(q, k, blocks, threshold=None):
        parts = [x.unflatten(1, (-1, size)) for x, size in zip((q, k), blocks)]
        means = [part.mean(2, dtype=torch.float32) for part in parts]
        if threshold is None:
            return means, [None, None]
        # The mean cosine between the tokens of a block is the square of the mean of their directions.
        directions = [F.normalize(part.float(), dim=-1).mean(2) for part in parts]
        return means, [direction.square().sum(-1) > threshold for direction in directions]

    @staticmethod
    def shares(q, k, similar=None):
        scores = q @ k.transpose(1, 2) * HEAD_DIM**-0.5
        if similar is not None:
            scores = scores.masked_fill(~similar[:, None], float("-inf"))
        return scores.softmax(-1)


def bottom_mass(x, amount):
    """The smallest whose sum is at most `amount`."""
    ordered, places = x.sort(dim=-1, stable=True)
    return torch.zeros_like(x, dtype=torch.bool).scatter_(-1, places, ordered.cumsum(-1) <= amount)


class FlashOmni:
    """The paper's rule: contribution and guidance decide which q-blocks are cached, the mass of keys what is skipped."""

    strategy, settings = ("flashomni", "flashomni"), "block_size:128"
    step = 27  # an update in the middle
    blocks = (128, 128)

    def front(self, parts, q, k):
        (q, k), _ = parts.pool(q, k, self.blocks)
        return (parts.shares(q, k),)

    def rest(self, shares):
        ramp = (self.step / STEPS) ** 2
        text = TEXT // self.blocks[0]
        contribution = shares[:, :text, text:].sum(1)
        guidance = shares[:, text:, :text].softmax(1).sum(2)
        chosen = [bottom_mass(x / x.sum(-1, keepdim=True), 0.5 * ramp) for x in (contribution, guidance)]
        computed = F.pad(~(chosen[0] & chosen[1]), (text, 0), value=True)
        return computed, ~bottom_mass(shares, 0.15 * ramp)


class SpargeTopK:
    """SpargeAttn's: half of the keys of each row, and all of what its mean describes badly."""

    strategy, settings = ("sparge", "sparge_topk"), ""
    step = 27
    blocks = (128, 64)
    threshold = -0.1

    def front(self, parts, q, k):
        (q, k), (similar_q, similar_k) = parts.pool(q, k, self.blocks, self.threshold)
        return parts.shares(q, k, similar_k), similar_q, similar_k

    def rest(self, shares, similar_q, similar_k):
        places = shares.topk(max(shares.shape[-1] // 2, 1), sorted=False).indices
        kept = torch.zeros_like(shares, dtype=torch.bool).scatter_(-1, places, True)
        return torch.ones_like(similar_q), kept | ~similar_q[:, :, None] | ~similar_k[:, None]


RULES = {"flashomni": FlashOmni, "sparge_topk": SpargeTopK}


def peer(name, rule):
    """What chooses as the peer does, of q and k [heads, tokens, head_dim]."""
    if name == "triton":
        rest = torch.compile(rule.rest, dynamic=False)
        return lambda q, k: rest(*rule.front(gpu_selectors_triton, q, k))

    def whole(q, k):
        return rule.rest(*rule.front(Torch, q, k))

    return torch.compile(whole, dynamic=False) if name == "compile" else whole


def inputs(tokens, device="cuda"):
    """q and k [heads, tokens, head_dim]."""
    generator = torch.Generator(device).manual_seed(7)

    def one():
        means = torch.randn(HEADS, tokens // 128, 1, HEAD_DIM, device=device, generator=generator)
        noise = torch.randn(HEADS, tokens // 128, 128, HEAD_DIM, device=device, generator=generator)
        return (means + noise).flatten(1, 2).bfloat16()

    return one(), one()


def strategy_of(rule, tokens):
    """What the library compiles."""
    file, name = rule.strategy
    source = (ROOT / "examples" / "strategies" / f"{file}.omni").read_bytes()
    height, width = IMAGES[tokens]
    settings = f"layers=1;steps={STEPS};heads={HEADS};head_dim={HEAD_DIM};text={TEXT};image.h={height};image.w={width};{rule.settings}"
    return Strategy(source, name.encode(), b"flux1_dev", settings.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="target/release/examples/libcapi.so")
    parser.add_argument("--output", default="gpu_selectors.json", help="results; their cells are not measured again")
    parser.add_argument("--table", help="writes a table of all results, in Markdown")
    parser.add_argument("--tokens", type=lambda text: [int(word) for word in text.split(",")], default=list(IMAGES))
    parser.add_argument("--rules", type=lambda text: text.split(","), default=list(RULES))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--profile", action="store_true", help="prints the time of each kernel instead")
    args = parser.parse_args()
    library, results, sensor = Library(args.library), load(args.output), Sensor()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    for tokens in args.tokens:
        q, k = inputs(tokens)
        for name in args.rules:
            key, rule = f"{name} {tokens}", RULES[name]()
            if key in results and not args.profile:
                print(line(key, results[key]), flush=True)
                continue
            try:
                contestants, agreement, density = prepared(library, rule, q, k)
            except RuntimeError as error:
                print(f"{key}: {error}", flush=True)
                continue
            if args.profile:
                profile(key, contestants)
                continue
            results[key] = measure(contestants, agreement, args.rounds, sensor) | density
            save(args.output, results)
            print(line(key, results[key]), flush=True)
    if args.table:
        with open(args.table, "w") as file:
            file.write(table(results))


def prepared(library, rule, q, k):
    """Functions by name, how well the peers' symbols agree with ours, and how dense these are."""
    torch.compiler.reset()  # what was compiled for other shapes would count as recompiled
    tokens = q.shape[1]
    selection = library.selection(strategy_of(rule, tokens), q[None], k[None], rule.step, rule.blocks[1])
    selection.run()
    torch.cuda.synchronize()
    counts = [-(-tokens // size) for size in rule.blocks]
    ours = [unpacked(words, count) for words, count in zip(selection.out, counts)]
    contestants, agreement = {"ours": selection.run}, {}
    for name in PEERS:
        if name == "triton" and gpu_selectors_triton is None:
            continue
        try:
            choose = peer(name, rule)
            found = choose(q, k)
        except Exception as error:  # whatever a compiler of kernels throws: the others are measured all the same
            print(f"without {name}: {type(error).__name__}: {error}", flush=True)
            continue
        agreement[name] = [(a == b).double().mean().item() for a, b in zip(ours, found)]
        contestants[name] = lambda choose=choose: choose(q, k)
    full = [torch.ones(HEADS, *shape, dtype=torch.bool, device="cuda") for shape in ((-(-tokens // 128),) * 2, (-(-tokens // 128),))]
    attention = library.attention(q[None], k[None], k[None], *full)
    attention.plan()
    contestants["dense"] = attention.run
    density = {"computed": ours[0].double().mean().item(), "kept": ours[1].double().mean().item()}
    return contestants, agreement, density


def measure(contestants, agreement, rounds, sensor):
    timings = {name: Timing(function, 10.0, 0.0) for name, function in contestants.items()}
    take_turns(timings, rounds, sensor)
    return {
        "contestants": {name: timing.summary(0.0) for name, timing in timings.items()},
        "agree": {name: {"cache": cache, "skip": skip} for name, (cache, skip) in agreement.items()},
    }


def profile(key, contestants):
    """Prints what each kernel takes, launched one by one."""
    for name, function in contestants.items():
        function()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            function()
            torch.cuda.synchronize()
        kernels = kernels_of(recorded)
        whole = sum(kernel.device_time for kernel in kernels)
        parts = ", ".join(f"{kernel.name[:40]} {kernel.device_time:.1f}" for kernel in kernels)
        print(f"{key} {name}: {whole:.1f} us in {len(kernels)} kernels: {parts}", flush=True)


def microseconds(result, name):
    timing = result["contestants"].get(name)
    return timing and timing["ms"] * 1e3


def agreement_of(result, name):
    """Of both kinds of symbols, the smaller share."""
    agree = result["agree"].get(name)
    return f"{min(agree.values()):.3%}" if agree else "-"


def table(results):
    lines = [
        "| rule, tokens | ours, us | of dense | torch | torch.compile | Triton | fastest peer over ours | agree (torch, compile, Triton) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, result in results.items():
        ours = microseconds(result, "ours")
        peers = [microseconds(result, name) for name in PEERS]
        known = [time for time in peers if time]
        lines.append(
            f"| {key} | {ours:.1f} | {ours / microseconds(result, 'dense'):.1%} | "
            + " | ".join("-" if time is None else f"{time:.1f}" for time in peers)
            + f" | {f'{min(known) / ours:.2f}x' if known else '-'} | "
            + ", ".join(agreement_of(result, name) for name in PEERS)
            + " |"
        )
    return "\n".join(lines) + "\n"


def line(key, result):
    parts = [key.ljust(18)]
    for name, timing in result["contestants"].items():
        loose = "" if timing["captured"] else " (not captured)"
        parts.append(f"{name} {timing['ms'] * 1e3:.1f} us{loose}")
    parts.append("agree " + " ".join(f"{name} {agreement_of(result, name)}" for name in result["agree"]))
    parts.append(f"computed {result['computed']:.3f}, kept {result['kept']:.3f}")
    return " | ".join(parts)


if __name__ == "__main__":
    main()
