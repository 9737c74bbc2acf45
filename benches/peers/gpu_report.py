"""Tables and a plot from what gpu_attention.py has measured.

    python benches/peers/gpu_report.py gpu.json [more.json ...] [--table table.md] [--plot plot.svg] [--full]

Several files are merged; the later one counts where two have the same cell. `--full` appends every cell.
"""

import argparse
import json
import math
from collections import defaultdict

PEERS = ("fa4", "flex", "cudnn", "fa2")
NAMES = {"ours": "ours", "fa4": "FA4", "flex": "Flex", "cudnn": "cuDNN", "fa2": "FA2"}
COLOURS = {"ours": "#c2410c", "fa4": "#1d4ed8", "flex": "#15803d", "cudnn": "#6b7280", "fa2": "#a16207"}
MASKS = {"random": "-", "sliding": "--", "skewed": ":"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--table", help="where the Markdown goes; standard output without it")
    parser.add_argument("--plot", help="where the SVG goes")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    cells = merged(args.files)
    text = report(cells, args.full)
    if args.table:
        with open(args.table, "w") as file:
            file.write(text)
    else:
        print(text, end="")
    if args.plot:
        plot(cells, args.plot)


class Cells:
    """Cells by (dtype, tokens, heads, head_dim, mask, s, cached)."""

    FIELDS = ("dtype", "tokens", "heads", "head_dim", "mask", "s", "cached")

    def __init__(self, cells):
        self.by_key = {tuple(cell[field] for field in self.FIELDS): cell for cell in cells}

    def __iter__(self):
        return iter(self.by_key[key] for key in sorted(self.by_key))

    def shapes(self):
        return sorted({key[:4] for key in self.by_key})

    def dense(self, shape):
        return self.by_key.get((*shape, "none", 0.0, 0.0))

    def uncached(self, cell):
        return self.by_key.get((*(cell[field] for field in self.FIELDS[:-1]), 0.0))

    def of(self, shape, mask, cached):
        """Cells of one shape by sparsity, with the dense one as s = 0."""
        found = [self.by_key[key] for key in sorted(self.by_key) if key[:4] == shape and key[4] in (mask, "none")]
        return [cell for cell in found if cell["cached"] == cached]


def merged(files):
    cells = {}
    for path in files:
        with open(path) as file:
            cells |= json.load(file)["cells"]
    return Cells(cells.values())


def ours(cell):
    return cell["contestants"]["ours"]


def faster(cell, peer):
    """How many times as long the peer takes as we do; None where it did not run."""
    other = cell["contestants"].get(peer)
    return other and other["ms"] / ours(cell)["ms"]


def of_dense(cells, cell):
    """TFLOP/s on live blocks as a share of our own dense ones."""
    dense = cells.dense(tuple(cell[field] for field in Cells.FIELDS[:4]))
    return dense and ours(cell)["tflops"] / ours(dense)["tflops"]


# Tables.


TITLE = """# Attention on a GPU, all tables

Made by `benches/peers/gpu_report.py`; how it was measured stands in [performance](performance.md) and in
`benches/peers/README.md`."""


def report(cells, full):
    tables = [machines, dense_table, sparse_table, cached_table, ratio_table, cold_table]
    parts = [make(cells) for make in (*tables, full_table)[: None if full else len(tables)]]
    return "\n\n".join([TITLE, *(part for part in parts if part)]) + "\n"


def table(title, head, rows):
    if not rows:
        return ""
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value, form=".0f", end=""):
    return "-" if value is None else f"{value:{form}}{end}"


def percent(value):
    return number(value and 100 * value, ".1f", "%")


def shape_of(cell):
    return [f"{cell['tokens']:,}", str(cell["heads"]), str(cell["head_dim"])]


def machines(cells):
    found = {", ".join(f"{name} {value}" for name, value in cell["machine"].items()) for cell in cells}
    return "\n".join(f"Measured on: {one}." for one in sorted(found))


def dense_table(cells):
    rows = []
    for shape in cells.shapes():
        cell = cells.dense(shape)
        if cell is None:
            continue
        rates = {name: of["tflops"] for name, of in cell["contestants"].items()}
        best = max((rate for name, rate in rates.items() if name != "ours"), default=None)
        columns = [number(rates.get(name)) for name in ("ours", *PEERS)]
        against = number(best and rates["ours"] / best, ".3f")
        rows.append([*shape_of(cell), *columns, against, number(ours(cell)["sm_mhz"]), number(ours(cell)["watts"])])
    names = [NAMES[name] for name in ("ours", *PEERS)]
    return table("Dense, TFLOP/s", ["tokens", "heads", "head_dim", *names, "ours / best", "MHz", "W"], rows)


def sparse_table(cells):
    rows = []
    for cell in cells:
        if cell["mask"] == "random" and cell["cached"] == 0:
            fa4 = cell["contestants"].get("fa4")
            rows.append(
                [
                    *shape_of(cell),
                    f"{cell['s']:g}",
                    percent(cell["live"]),
                    number(ours(cell)["ms"], ".4f"),
                    number(ours(cell)["tflops"]),
                    percent(of_dense(cells, cell)),
                    number(fa4 and fa4["ms"], ".4f"),
                    number(fa4 and fa4["tflops"]),
                    number(faster(cell, "fa4"), ".2f"),
                    number(faster(cell, "flex"), ".2f"),
                    number(1e3 * ours(cell)["plan_ms"], ".1f"),
                    number(ours(cell)["sm_mhz"]),
                    number(ours(cell)["watts"]),
                ]
            )
    head = ["tokens", "heads", "head_dim", "s", "live", "ms", "TFLOP/s", "of own dense", "FA4, ms", "FA4, TFLOP/s"]
    head += ["x FA4", "x Flex", "plan, us", "MHz", "W"]
    return table("Random blocks skipped; x: how many times as long the peer takes", head, rows)


def cached_table(cells):
    """Time against the share of q-blocks that are computed: 1 where cached ones cost nothing."""
    rows = []
    for cell in cells:
        full = cells.uncached(cell)
        if cell["cached"] == 0 or cell["mask"] not in ("none", "random") or full is None or cell["live"] == 0:
            continue
        share = cell["live"] / full["live"]
        against = ours(cell)["ms"] / (ours(full)["ms"] * share)
        rows.append(
            [
                *shape_of(cell),
                f"{cell['s']:g}",
                f"{cell['cached']:g}",
                number(ours(cell)["ms"], ".4f"),
                number(against, ".3f"),
                number(faster(cell, "fa4"), ".2f"),
            ]
        )
    head = ["tokens", "heads", "head_dim", "s", "cached", "ms", "time / (live share of uncached time)", "x FA4"]
    return table("Cached q-blocks, random blocks skipped", head, rows)


def ratio_table(cells):
    """The ratio to each sparse peer, over all cells of a length and a kind of mask."""
    groups = defaultdict(list)
    for cell in cells:
        for peer in ("fa4", "flex"):
            ratio = faster(cell, peer)
            if ratio:
                groups[peer, cell["tokens"], cell["mask"]].append((ratio, cell))
    rows = []
    for (peer, tokens, mask), found in sorted(groups.items()):
        ratios = [ratio for ratio, _ in found]
        worst, where = min(found, key=lambda pair: pair[0])
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        place = f"{where['heads']} heads, {where['head_dim']}, s {where['s']:g}, cached {where['cached']:g}"
        slower = sum(ratio < 1 for ratio in ratios)
        counts = [f"{tokens:,}", mask, str(len(found))]
        rows.append([NAMES[peer], *counts, f"{mean:.2f}", f"{worst:.2f}", place, str(slower)])
    head = ["peer", "tokens", "mask", "cells", "geometric mean", "least", "where", "cells where we are slower"]
    return table("How many times as long the peer takes, over all cells of a length and a kind of mask", head, rows)


def cold_table(cells):
    rows = []
    for cell in cells:
        if "cold_ms" in ours(cell) and cell["mask"] in ("none", "random") and cell["cached"] == 0:
            times = [number(cell["contestants"].get(name, {}).get("cold_ms"), ".4f") for name in ("ours", *PEERS)]
            rows.append([*shape_of(cell), f"{cell['s']:g}", *times])
    names = [f"{NAMES[name]}, ms" for name in ("ours", *PEERS)]
    return table("One launch with cold caches", ["tokens", "heads", "head_dim", "s", *names], rows)


def full_table(cells):
    rows = []
    for cell in cells:
        times = [number(cell["contestants"].get(name, {}).get("ms"), ".4f") for name in ("ours", *PEERS)]
        rows.append(
            [
                *shape_of(cell),
                cell["mask"],
                f"{cell['s']:g}",
                f"{cell['cached']:g}",
                percent(cell["live"]),
                *times,
                number(ours(cell)["tflops"]),
                percent(of_dense(cells, cell)),
                number(faster(cell, "fa4"), ".2f"),
                f"{ours(cell)['error']:.1e}",
                number(ours(cell)["sm_mhz"]),
                number(ours(cell)["watts"]),
            ]
        )
    names = [f"{NAMES[name]}, ms" for name in ("ours", *PEERS)]
    head = ["tokens", "heads", "head_dim", "mask", "s", "cached", "live", *names, "TFLOP/s", "of own dense", "x FA4"]
    return table("All cells", [*head, "error", "MHz", "W"], rows)


# Plot.


def plot(cells, path):
    """Above, TFLOP/s on live blocks over the sparsity of random blocks; below, the ratio to FA4 by kind of mask and
    share of cached q-blocks; a column for each length."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "omni", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    shapes = shapes_to_draw(cells)
    size = (3 * len(shapes) + 1.5, 5.4)
    figure, axes = pyplot.subplots(2, len(shapes), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, shape in enumerate(shapes):
        _, tokens, heads, head_dim = shape
        draw_rates(axes[0][column], cells.of(shape, "random", 0.0))
        draw_ratios(axes[1][column], cells, shape)
        axes[0][column].set_title(f"{tokens:,} tokens", fontsize=10)
        axes[1][column].set_xlabel("sparsity")
    axes[0][0].set_ylim(bottom=0)  # of the whole row, once all is drawn
    axes[0][0].set_ylabel("TFLOP/s on live blocks")
    axes[1][0].set_ylabel("time of FA4 / ours")
    for row in axes:  # beside the last column, where no line runs through them; a label once, from whatever column has it
        lines = {label: line for axis in row for line, label in zip(*axis.get_legend_handles_labels())}
        row[-1].legend(lines.values(), lines, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(f"{heads} heads, head_dim {head_dim}, {cells.dense(shapes[0])['machine']['gpu']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def shapes_to_draw(cells):
    """All lengths of the heads and the head size that have the most cells, the larger head first."""
    by_kind = defaultdict(list)
    for shape in cells.shapes():
        if cells.dense(shape):
            by_kind[shape[0], shape[2], shape[3]].append(shape)
    return max(by_kind.items(), key=lambda item: (len(item[1]), item[0][2], -item[0][1]))[1]


def draw_rates(axis, row):
    for name in ("ours", *PEERS):
        points = [(cell["s"], cell["contestants"][name]["tflops"]) for cell in row if name in cell["contestants"]]
        if len(points) == 1:  # a peer that only runs dense: its rate as a line to compare with
            label = f"{NAMES[name]}, dense"
            axis.axhline(points[0][1], color=COLOURS[name], linewidth=0.8, linestyle="--", label=label)
        elif points:
            axis.plot(*zip(*points), color=COLOURS[name], marker="o", markersize=3, label=NAMES[name])
    axis.grid(alpha=0.3)


def draw_ratios(axis, cells, shape):
    for mask, style in MASKS.items():
        for cached, colour in ((0.0, COLOURS["ours"]), (0.5, "#0e7490"), (0.8, "#7e22ce")):
            row = [cell for cell in cells.of(shape, mask, cached) if faster(cell, "fa4")]
            if row:
                points = [(cell["s"], faster(cell, "fa4")) for cell in row]
                axis.plot(*zip(*points), style, color=colour, label=f"{mask}, {cached:.0%} cached")
    axis.axhline(1, color="#6b7280", linewidth=0.8)
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    main()
