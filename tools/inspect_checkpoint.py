"""Prints a checkpoint's step, configuration and tokenizer, and every parameter with its shape, axes and norm.

    python tools/inspect_checkpoint.py runs/tiny
    python tools/inspect_checkpoint.py DIR_OR_FILE_OF_OTHERS [--vocab vocab.txt]

Invariant: nothing is written, and weights that others publish are shown as they would be imported.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spanbert_jax import cli
from spanbert_jax.config import Config, flatten
from spanbert_jax.convert.names import Params

if TYPE_CHECKING:
    from spanbert_jax.serving.weights import Weights

# Sums of the released models' learning rates over their steps: 2.4 million of 1e-4 (large) and 300,000 of 5e-4 (base),
# falling linearly (Joshi et al. 2020, section 4.2, and the authors' answer to issue 6 of their repository).
RELEASED = {"large": 120.0, "base": 75.0}


def parameter_table(params: Params, family: str) -> Table:
    """A row for every group of parameters, each followed by a row for every array in it. family: `model.family`."""
    import jax

    from spanbert_jax.model.parameters import parameter_axes
    from spanbert_jax.training.sharding import path_name

    table = Table("parameter", "shape", "axes", "values", "norm", "rms", box=None)
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[3:]:
        column.justify = "right"
    for group, tree in params.items():
        leaves = jax.tree.leaves(tree)
        norm, size = math.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves)), _size(tree)
        table.add_row(group, "", "", f"{size:,}", f"{norm:.4g}", f"{norm / math.sqrt(size):.3g}", style="bold")
        for path, leaf in jax.tree_util.tree_leaves_with_path({group: tree}):
            name, norm = path_name(path), math.sqrt(np.sum(np.square(leaf, dtype=np.float64)))
            axes = ", ".join(axis or "-" for axis in parameter_axes(name, family))
            shape = " x ".join(map(str, leaf.shape))
            table.add_row(
                f"  {name}", shape, axes, f"{leaf.size:,}", f"{norm:.4g}", f"{norm / math.sqrt(leaf.size):.3g}"
            )
    return table


def _size(params: Params) -> int:
    return sum(_size(value) if isinstance(value, dict) else value.size for value in params.values())


def token_type_note(params: Params, weights: "Weights") -> list[str]:
    """Lines about the second token type's vector, which tells whether a model was trained on pairs.

    Pre-training on single sequences never uses the vector, so the vector gets no gradient and only decays: its root
    mean square is init_std * exp(-weight_decay * sum of learning rates).
    """
    import jax

    from spanbert_jax.training.optimizer import learning_rate

    table = params["embeddings"].get("token_type", ())
    if len(table) < 2:
        return []
    norms = [float(np.linalg.norm(row)) for row in table[:2]]
    rms = norms[1] / math.sqrt(table.shape[1])
    lines = [f"Token types: norm of row 0 {norms[0]:.4g}, of row 1 {norms[1]:.4g} (rms {rms:.3g})"]
    config, steps = weights.config, weights.step
    saved = weights.metadata
    if saved and saved.task == "pretraining" and not config.init_from:
        rates = jax.vmap(learning_rate(config.optimizer, config.train.steps))(np.arange(steps))
        expected = config.model.init_std * math.exp(-config.optimizer.weight_decay * float(rates.sum()))
        lines.append(f"  row 1 would have an rms of about {expected:.3g} if it had only decayed for {steps:,} steps")
    elif not saved or saved.imported_from:
        for decay in (0.01, 0.1):
            decayed = (f"{0.02 * math.exp(-decay * total):.2g} in {size}" for size, total in RELEASED.items())
            lines.append(
                f"  in a SpanBERT trained with weight decay {decay}, row 1 would have an rms of {', '.join(decayed)}"
            )
        lines.append("  (row 1 gets no gradient from single sequences and only decays; BERT's, from pairs, is trained)")
    return lines


def show(source: Path, vocab: Path | None, console: Console) -> None:
    """Prints the report; raises UserError where there are no weights that can be read."""
    from spanbert_jax.serving.weights import open_weights

    with open_weights(source, vocab) as weights:
        params, report = weights.load()
    tokenizer, metadata = weights.tokenizer, weights.metadata
    size = _size(params)
    lines = [f"{size:,} parameters ({size * 4 / 2**20:,.1f} MiB in float32): {', '.join(report.taken)}"]
    if metadata and metadata.imported_from:
        lines.append(f"Imported from {metadata.imported_from}; {len(metadata.left_alone)} tensors left alone there")
    casing = "; lowercases" if tokenizer.lowercase else ""
    lines.append(f"Tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} pieces, {tokenizer.fingerprint[:16]}{casing}")
    lines += weights.notes
    if weights.labels:
        lines.append(f"Labels: {', '.join(weights.labels)}")
    if metadata:
        writers = {"spanbert_jax": metadata.written_by or "before 0.2.0", **metadata.versions}
        lines.append("Written by " + ", ".join(f"{name} {version}" for name, version in writers.items()))
    default = flatten(Config())
    changed = [f"{k}={v!r}" for k, v in flatten(weights.config).items() if v != default[k]]
    lines.append("\n  ".join(["Configuration, where it differs from the defaults:", *changed]))
    # In a plain string rich would take a user's label such as "[b]" for markup. A Text is printed as it is.
    console.print(Text.assemble((weights.source, "bold"), f": {weights.kind}, step {weights.step:,}"))
    console.print(Text("\n".join(lines)))
    console.print()
    console.print(parameter_table(params, weights.config.model.family))
    console.print(Text("\n".join(token_type_note(params, weights))))


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a workdir, one of its checkpoints/STEP, or weights of others")
    parser.add_argument(
        "--vocab", type=Path, help="vocab.txt, .model or tokenizer.json, where weights of others have none beside them"
    )
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140  # the width of a file or a pager is not known
    return cli.status(lambda: show(arguments.checkpoint, arguments.vocab, console))


if __name__ == "__main__":
    cli.run(main)
