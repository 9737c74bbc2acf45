"""Times the CPU attention beside PyTorch's scaled_dot_product_attention, taking turns.

    cargo bench --bench attention --no-run        # prints the path of the binary
    python benches/peers/cpu_attention.py PATH [--rounds 9] [--threads 2]

Both run f32 at the same number of threads. PyTorch has no block-sparse kernel on the CPU, so every row is compared
with its dense time.
"""

import argparse
import os
import statistics
import subprocess
import time

import torch

SHAPES = [(8, 4096, 64, 128), (8, 4096, 64, 64), (8, 2048, 128, 128)]
SPARSITIES = [0.0, 0.5, 0.75, 0.9]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="the bench binary `attention`")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))

    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| heads x tokens x head_dim | block | s | ours, ms | PyTorch dense, ms | ours is faster by |")
    print("|---|---|---|---|---|---|")
    for heads, tokens, head_dim, block in SHAPES:
        # One server for each contestant keeps its operands; all of them take turns with PyTorch.
        servers = [
            subprocess.Popen(
                [args.binary, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            for _ in SPARSITIES
        ]
        q, k, v = (torch.rand(1, heads, tokens, head_dim) * 3.4 - 1.7 for _ in range(3))
        ours = [[] for _ in SPARSITIES]
        theirs = []
        for round in range(args.rounds + 1):
            for server, sparsity, times in zip(servers, SPARSITIES, ours):
                server.stdin.write(f"{heads} {tokens} {head_dim} {block} {sparsity}\n")
                server.stdin.flush()
                times.append(float(server.stdout.readline()))
            start = time.perf_counter()
            with torch.inference_mode():
                torch.nn.functional.scaled_dot_product_attention(q, k, v)
            theirs.append((time.perf_counter() - start) * 1e3)
        for server in servers:
            server.stdin.close()
            server.wait()
        dense = statistics.median(theirs[1:])
        for sparsity, times in zip(SPARSITIES, ours):
            time_ms = statistics.median(times[1:])
            print(
                f"| {heads} x {tokens} x {head_dim} | {block} | {sparsity} | {time_ms:.1f} | {dense:.1f} "
                f"| {dense / time_ms:.2f} |"
            )


if __name__ == "__main__":
    main()
