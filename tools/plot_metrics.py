"""Draws a run's curves: held-out and training accuracy and loss of MLM and SBO against steps.

    python tools/plot_metrics.py --workdir runs/tiny --output curve.svg

Invariant: every point is a line of metrics.jsonl. Needs matplotlib (requirements-dev.txt).
"""

import json
import sys
from pathlib import Path

try:
    import matplotlib
except ImportError:
    sys.exit("error: matplotlib is missing; pip install -r requirements-dev.txt")

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from spanbert_jax import cli


def read(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """name -> (steps, values); raises OSError or ValueError where the file is missing or damaged."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(value)
    return series


def draw(series: dict[str, tuple[list[int], list[float]]], title: str) -> plt.Figure:
    """Two panels, accuracy and loss; held out thick, training thin, the commonest piece dotted."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    for axis, measure, scale in zip(axes, ("accuracy", "loss"), (100, 1), strict=True):
        for head, colour in (("mlm", "tab:blue"), ("sbo", "tab:orange")):
            for side, style in (("train", {"alpha": 0.35, "lw": 1}), ("held_out", {"lw": 2, "marker": ".", "ms": 5})):
                if f"{side}/{head}_{measure}" in series:
                    steps, values = series[f"{side}/{head}_{measure}"]
                    label = f"{head.upper()}, {side.replace('_', ' ')}"
                    axis.plot(steps, [scale * value for value in values], color=colour, label=label, **style)
        axis.set(xlabel="step", ylabel="accuracy, %" if scale == 100 else "loss, nats a piece")
        axis.grid(alpha=0.3)
    if "held_out/mlm_commonest" in series:
        share = 100 * series["held_out/mlm_commonest"][1][-1]
        axes[0].axhline(share, color="grey", ls=":", label="always the commonest piece")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of the run")
    parser.add_argument("--output", type=Path, required=True, help="a .svg or .png file")
    arguments = parser.parse_args(argv)
    try:
        series = read(arguments.workdir / "metrics.jsonl")
        draw(series, f"{arguments.workdir}").savefig(arguments.output, dpi=110)
    except (OSError, ValueError) as error:
        print(f"error: {arguments.workdir / 'metrics.jsonl'} to {arguments.output}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
