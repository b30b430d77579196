"""Tables and a picture of what simulate.py and bandit.py measured.

python benchmarks/grouping/report.py SIMULATION.json [LEARNING.json] writes SIMULATION.md and SIMULATION.png
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

NAMES = {
    "grpo": "GRPO, group mean †",
    "grpo-std": "GRPO / std",
    "rloo": "RLOO",
    "global": "global (step's other rollouts)",
    "spo": "SPO tracker",
    "js2": "JS2",
    "empirical_bayes": "empirical Bayes",
    "mixture": "mixture",
    "mixture-weighted": "mixture, score-norm weighted",
    "oracle": "oracle b = p",
    "oracle-weighted": "oracle b = E[Wr]/E[W]",
}


def spread(values: list[float], digits: int = 4) -> str:
    """Mean ± standard error over seeds."""
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def gather(results: dict, kind: str, scenario: str, measure: str) -> dict[str, dict[int, dict[int, list[float]]]]:
    """arm → size → seed → values over steps."""
    series: dict = defaultdict(lambda: defaultdict(dict))
    for key, result in results.items():
        name, seed, size = key.split("/")
        if name == f"{kind}{scenario}":
            for arm, values in result[measure].items():
                series[arm][int(size)][int(seed)] = values
    return series


def main_tables(results: dict, kind: str, scenario: str) -> list[str]:
    mse, power = (gather(results, kind, scenario, measure) for measure in ("mse", "power"))
    if not mse:
        return []
    sizes = sorted({size for arm in mse.values() for size in arm})
    seeds = len(next(iter(mse["empirical_bayes"].values())))
    head = ["| method | " + " | ".join(f"G={size}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    lines = [f"### {scenario}: {seeds} seed(s)", "", "Mean squared error (b - p)² over all steps:", "", *head]
    for arm in NAMES:
        if arm in mse and arm not in ("grpo-std", "oracle", "oracle-weighted", "mixture-weighted"):
            cells = [spread([float(np.mean(v)) for v in mse[arm][size].values()]) for size in sizes]
            lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    lines += flat_table(mse, sizes, head)
    lines += ["", "Gradient power E[W (r - b)²] over that of b = p, after the first 5 steps:", "", *head]
    for arm in NAMES:
        if arm not in power or arm in ("grpo", "grpo-std"):
            continue
        cells = []
        for size in sizes:
            ratios = [
                float(np.mean(v[5:]) / np.mean(power["oracle"][size][seed][5:])) for seed, v in power[arm][size].items()
            ]
            cells.append(spread(ratios, 3))
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    return [*lines, "", *gradient_table(results, kind, scenario, sizes)]


def flat_table(mse: dict, sizes: list[int], head: list[str]) -> list[str]:
    """1 + MSE / E p(1 - p): the variance of a gradient whose score norm says nothing about the reward."""
    if not mse["rloo"].get(2):
        return []
    # One sibling is one reward, so the error of RLOO at G = 2 is the variance of a reward.
    noise = float(np.mean([np.mean(v) for v in mse["rloo"][2].values()]))
    lines = [
        "",
        "Gradient variance over the oracle's if score norms do not depend on the reward, 1 + MSE / E p(1 - p):",
        "",
        *head,
    ]
    for arm in ("rloo", "global", "spo", "js2", "empirical_bayes", "mixture"):
        cells = [f"{1 + np.mean([np.mean(v) for v in mse[arm][size].values()]) / noise:.3f}" for size in sizes]
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " |")
    return lines


def gradient_table(results: dict, kind: str, scenario: str, sizes: list[int]) -> list[str]:
    """tr Cov(g) / c², relative to the oracle's; c projects the mean gradient on the true one."""
    moments: dict = gather(results, kind, scenario, "gradient")
    measured = [size for size in sizes if any(v["trace"] for v in moments["oracle"].get(size, {}).values())]
    if not measured:
        return []
    lines = [
        "Measured gradient variance tr Cov(g) / c² over the oracle's, and the signal c:",
        "",
        "| method | " + " | ".join(f"G={size}" for size in measured) + " | c |",
        "|---" * (len(measured) + 2) + "|",
    ]

    def total(arm: str, size: int, name: str) -> float:
        return float(np.sum([np.sum(v[name]) for v in moments[arm][size].values()]))

    for arm in (name for name in NAMES if name in moments):
        cells, signals = [], []
        for size in measured:
            c = total(arm, size, "along") / total(arm, size, "power")
            signal = total("oracle", size, "along") / total("oracle", size, "power")
            base = total("oracle", size, "trace") / signal**2
            signals.append(f"{c:.2f}")
            cells.append(f"{total(arm, size, 'trace') / c**2 / base:.3f}" if c > 0.05 else "no signal")
        lines.append(f"| {NAMES[arm]} | " + " | ".join(cells) + " | " + ", ".join(signals) + " |")
    return [*lines, ""]


def worlds_table(results: dict, kind: str) -> list[str]:
    arms = ["rloo", "global", "spo", "js2", "empirical_bayes", "mixture"]
    lines = ["### Mean squared error in every world", ""]
    lines += [
        "| world | G | seeds | " + " | ".join(NAMES[arm] for arm in arms) + " | best other → stack |",
        "|---" * 10 + "|",
    ]
    scenarios = dict.fromkeys(key.split("/")[0] for key in results if "ablation" not in key)
    for scenario in (name for name in scenarios if name.startswith("quick ") == bool(kind)):
        mse = gather(results, "", scenario, "mse")
        for size in sorted(mse["empirical_bayes"]):
            means = {arm: float(np.mean([np.mean(v) for v in mse[arm][size].values()])) for arm in arms}
            best = min(means[arm] for arm in arms[:4])
            change = f"{100 * (means['mixture'] / best - 1):+.0f} %"
            cells = [f"{means[arm]:.4f}" for arm in arms]
            lines.append(
                f"| {scenario} | {size} | {len(mse['empirical_bayes'][size])} | " + " | ".join(cells) + f" | {change} |"
            )
    return [*lines, ""]


def ablation_table(results: dict, kind: str) -> list[str]:
    mse = gather(results, f"{kind}ablation ", "main", "mse")
    if not mse:
        return []
    sizes = sorted(mse["empirical_bayes"])
    lines = [f"### Ablation, main world: {len(mse['empirical_bayes'][sizes[0]])} seed(s), mean squared error", ""]
    heads = [
        *(f"G={size}" for size in sizes),
        f"first 10 steps (G={sizes[0]})",
        f"8 steps after the shift (G={sizes[0]})",
    ]
    lines += ["| variant | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for arm, by_size in mse.items():
        cells = [spread([float(np.mean(v)) for v in by_size[size].values()]) for size in sizes]
        first = by_size[sizes[0]].values()
        cells.append(f"{np.mean([np.mean(v[:10]) for v in first]):.4f}")
        cells.append(f"{np.mean([np.mean(v[len(v) // 2 : len(v) // 2 + 8]) for v in first]):.4f}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def learning_table(curves: dict) -> list[str]:
    areas: dict = defaultdict(lambda: defaultdict(dict))
    for key, curve in curves.items():
        prompts, lr, size, arm, seed = key.split("/")
        areas[prompts, lr, int(size)][arm][int(seed)] = float(np.mean(curve))
    lines = ["### Learning: area under the curve of exact success", ""]
    lines += ["| prompts | lr | G | arm | seeds | area | paired difference to SPO at the same G |", "|---" * 7 + "|"]
    for (prompts, lr, size), arms in sorted(areas.items()):
        for arm in (name for name in NAMES if name in arms):
            beside = arms.get("spo", {})
            both = [area - beside[seed] for seed, area in arms[arm].items() if seed in beside]
            difference = spread(both) if both and arm != "spo" else ""
            cells = [prompts, lr, size, NAMES[arm], len(arms[arm]), spread(list(arms[arm].values())), difference]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, ""]


def picture(results: dict, curves: dict, kind: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mse, power = (gather(results, kind, "main", measure) for measure in ("mse", "power"))
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5))
    for arm in ("rloo", "global", "spo", "js2", "empirical_bayes", "mixture", "mixture-weighted", "oracle-weighted"):
        if arm not in mse:
            continue
        sizes = sorted(mse[arm])
        if "weighted" not in arm:
            values = [np.mean([np.mean(v) for v in mse[arm][size].values()]) for size in sizes]
            axes[0].plot(sizes, values, marker="o", label=NAMES[arm])
        ratio = [
            np.mean([np.mean(v[5:]) / np.mean(power["oracle"][size][seed][5:]) for seed, v in power[arm][size].items()])
            for size in sizes
        ]
        axes[1].plot(sizes, ratio, marker="o", label=NAMES[arm])
    axes[0].set(
        title="error of the baseline", xlabel="rollouts a prompt", ylabel="mean (b - p)²", yscale="log", xscale="log"
    )
    axes[1].set(title="gradient power over that of b = p", xlabel="rollouts a prompt", xscale="log", ylim=(0.5, 2.4))
    shown: dict = defaultdict(list)
    for key, curve in curves.items():
        _, _, size, arm, _ = key.split("/")
        if (arm, size) in {
            ("grpo-std", "8"),
            ("rloo", "2"),
            ("spo", "1"),
            ("mixture-weighted", "1"),
            ("mixture-weighted", "2"),
        }:
            shown[f"{NAMES[arm]}, G={size}"].append(curve)
    for name, many in sorted(shown.items()):
        axes[2].plot(np.mean(many, axis=0), label=name)
    axes[2].set(title="learning, 64 rollouts a step", xlabel="step", ylabel="exact mean success")
    for axis in axes[:2]:
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.minorticks_off()
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def write(out: Path, learning: Path | None = None) -> str:
    """Writes the tables and the picture beside the results; returns the tables."""
    results = json.loads(out.read_text()) if out.exists() else {}
    curves = json.loads(learning.read_text()) if learning and learning.exists() else {}
    kind = "quick " if results and all(key.startswith("quick ") for key in results) else ""
    lines = main_tables(results, kind, "main") + worlds_table(results, kind) + ablation_table(results, kind)
    lines += learning_table(curves) if curves else []
    text = "\n".join(lines)
    out.with_suffix(".md").write_text(text)
    picture(results, curves, kind, out.with_suffix(".png"))
    return text


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
