"""Draws a pre-training run's accuracy and loss, held-out and in training, of every head against steps.

    python tools/plot_metrics.py --workdir runs/tiny --output curve.svg

Invariant: every point is a line of metrics.jsonl. Lines that a stopped run left unfinished, or that are damaged, are
left out. Needs matplotlib (requirements-dev.txt).
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import written_aside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = dict[str, tuple[list[int], list[float]]]  # name -> (steps, values)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple")  # of the heads


def read(path: Path) -> Series:
    """The metrics in a metrics.jsonl, by name, of the lines that hold metrics; raises UserError where none does."""
    from etils import epath

    from spanbert_jax.training.progress import metric_records

    series: Series = {}
    try:
        records = metric_records(epath.Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a run's directory with --workdir") from error
    if not records:
        raise UserError(f"{path}: no metrics there; name the directory of a run that has logged some with --workdir")
    for _, row in records:
        for name, value in row.items():
            if type(value) in (int, float):
                steps, values = series.setdefault(name, ([], []))
                steps.append(int(row["step"]))
                values.append(value)
    return series


def draw(series: Series, title: str) -> "Figure":
    """Two panels, for every head: accuracy on the pieces that [MASK] replaced, in percent, and loss.

    Held-out values are thick lines, training values thin ones; the guesses without a model are dotted or dash-dotted.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    names = [name.removeprefix("held_out/").removesuffix("_loss") for name in series if name.startswith("held_out/")]
    heads = [name for name in dict.fromkeys(names) if f"held_out/{name}_loss" in series]
    for axis, measure, scale in zip(axes, ("accuracy_mask", "loss"), (100, 1), strict=True):
        for head, colour in zip(heads, _COLOURS, strict=False):
            for side, style in (("train", {"alpha": 0.35, "lw": 1}), ("held_out", {"lw": 2, "marker": ".", "ms": 5})):
                if f"{side}/{head}_{measure}" in series:
                    steps, values = series[f"{side}/{head}_{measure}"]
                    label = f"{head.upper()}, {side.replace('_', ' ')}"
                    axis.plot(steps, [scale * value for value in values], color=colour, label=label, **style)
        axis.set(xlabel="step", ylabel="accuracy on [MASK], %" if scale == 100 else "loss, nats a piece")
        axis.grid(alpha=0.3)
    for guess, what, line in (
        ("commonest_mask", "always the commonest piece", ":"),
        ("neighbours_mask", "guess from the neighbours", "-."),
    ):
        if heads and f"held_out/{heads[0]}_{guess}" in series:
            share = 100 * series[f"held_out/{heads[0]}_{guess}"][1][-1]
            axes[0].axhline(share, color="grey", ls=line, label=f"{what} ({heads[0].upper()})")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="the directory of the run")
    parser.add_argument("--output", type=Path, required=True, help="a .svg or .png file")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: plot(arguments.workdir, arguments.output))


def plot(workdir: Path, output: Path) -> None:
    """Draws the curves as the file `output`; raises UserError where matplotlib or the metrics are missing, or the
    file cannot be written."""
    if not importlib.util.find_spec("matplotlib"):
        raise UserError("matplotlib is missing; pip install -r requirements-dev.txt")
    figure = draw(read(workdir / "metrics.jsonl"), f"{workdir}")
    try:
        with written_aside(output) as aside:
            figure.savefig(aside, dpi=110, format=output.suffix.removeprefix("."))
    except (OSError, ValueError) as error:
        raise UserError(f"--output {output}: cannot be written ({error}); name a .svg or .png file") from error
    print(f"wrote {output}")


if __name__ == "__main__":
    cli.run(main)
