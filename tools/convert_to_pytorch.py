"""Writes a checkpoint as a directory that transformers' Auto classes load, for users of PyTorch.

    python tools/convert_to_pytorch.py --checkpoint runs/tiny --output export/

Invariant: the directory appears when all of it is written and compared. Writing needs neither torch nor transformers.
Where both are installed (requirements-torch.txt), transformers loads the export, and the largest difference is printed.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np

from spanbert_jax import cli
from spanbert_jax.config import Config
from spanbert_jax.convert.export import DTYPES, Export, write_export
from spanbert_jax.convert.tokenizer_export import differing
from spanbert_jax.errors import UserError
from spanbert_jax.files import new_directory
from spanbert_jax.serving.real_text import ROWS, real_lines, rows_of_lines
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.progress import Stage
from spanbert_jax.version import VERSION

TOLERANCE = 1e-4  # of the largest value; float32 rounding stays under a tenth of it


def tokenizer_report(tokenizer: Tokenizer, directory: Path, lines: list[str]) -> str:
    """Compares the exported tokenizer with ours on real lines; the report shows the first ten lines that differ."""
    cases = differing(tokenizer, directory, lines)
    said = f"Tokenizer: on {len(lines):,} real lines, {len(cases)} differ ({len(cases) / len(lines):.2%})"
    for line, ours, theirs in cases[:10]:
        first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        pieces = [" ".join(map(tokenizer.piece, ids[first : first + 6])) for ids in (ours, theirs)]
        said += f"\n  {line[:60]!r}: {pieces[0]} ... here, {pieces[1]} ... there"
    return said


def ours(export: Export, groups: tuple[str, ...], dtype: str, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of our functions for (input_ids, lengths, token_type_ids), with parameters rounded to the export's
    dtype."""
    import jax

    from spanbert_jax.serving.functions import functions

    params = jax.tree.map(
        lambda x: x.astype(DTYPES[dtype]).astype(np.float32), {group: export.params[group] for group in groups}
    )
    config = Config(model=export.model, task=export.task)
    computed = functions(config, groups, export.tokenizer.vocab_size, len(export.labels))
    return {name: np.asarray(jax.jit(function)(params, *inputs)) for name, function in computed.items()}


def theirs(name: str, directory: Path, inputs: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The outputs of transformers' class `name`, with eager and with sdpa attention; `inputs` are by the names of its
    arguments.

    Raises UserError where the class misses a tensor in the export, or finds one that it does not know.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, info = getattr(transformers, name).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong = [f"{what} {sorted(names)}" for what, names in info.items() if names]
    if wrong:
        raise UserError(f"{directory}: transformers' {name} does not find what it expects: {'; '.join(wrong)}")
    outputs = {}
    for implementation in ("eager", "sdpa"):
        model.eval().set_attn_implementation(implementation)
        with torch.no_grad():
            tensors = {argument: torch.tensor(x.astype(np.int64)) for argument, x in inputs.items()}
            output = model(**tensors, output_hidden_states=True)
        outputs[implementation] = {"encode": output.hidden_states[-1].numpy()}
        if name.endswith("ForQuestionAnswering"):
            outputs[implementation]["predict"] = torch.stack([output.start_logits, output.end_logits], -1).numpy()
        elif name.endswith("ForPreTraining"):
            outputs[implementation]["predict"] = output.prediction_logits.numpy()
            outputs[implementation]["next_sentence"] = output.seq_relationship_logits.numpy()
        elif not name.endswith("Model"):
            outputs[implementation]["predict"] = output.logits.numpy()
    return outputs


def compare(export: Export, directory: Path, name: str, groups: tuple[str, ...], dtype: str, lines: list[str]) -> str:
    """Compares our outputs with transformers' on real text. Returns the lines to print.

    Raises UserError where outputs differ by more than 1e-4 of the largest value.
    """
    ids, lengths = rows_of_lines(export.tokenizer, lines, min(128, export.model.max_length))
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    second = (np.arange(ids.shape[1]) >= lengths[:, None] // 2) & valid & (export.model.token_types > 1)
    types = second.astype(np.int32)
    expected = ours(export, groups, dtype, [ids, lengths, types])
    said = [f"Compared with transformers' {name} on {ROWS} rows of real text, largest difference:"]
    inputs = {"input_ids": ids, "attention_mask": valid}
    if export.model.family == "bert":  # ModernBERT has no token types.
        inputs["token_type_ids"] = types
    for implementation, outputs in theirs(name, directory, inputs).items():
        found = []
        titles = {"encode": "hidden states", "predict": "logits", "next_sentence": "next-sentence logits"}
        for what, title in titles.items():
            if what not in outputs:
                continue
            a, b = (x[valid] if x.shape[:2] == valid.shape else x for x in (expected[what], outputs[what]))
            b = b[..., : a.shape[-1]]  # theirs also score the padding rows of the vocabulary
            difference, largest = float(np.abs(a - b).max()), float(np.abs(b).max())
            if not difference <= TOLERANCE * max(1.0, largest):
                raise UserError(
                    f"{directory}: {title} differ from transformers' {name} ({implementation}) by {difference:.1e}, "
                    f"where values go up to {largest:.3g}; nothing was written; please report this"
                )
            found.append(f"{title} {difference:.1e} (values up to {largest:.3g})")
        said.append(f"  {implementation + ':':7}{', '.join(found)}")
    return "\n".join(said)


def convert(arguments: argparse.Namespace) -> None:
    """Exports, compares, and prints a report; raises UserError where the export disagrees with transformers."""
    from spanbert_jax.model import extensions
    from spanbert_jax.serving.weights import open_weights, training_of

    can_compare = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if arguments.verify and not can_compare:
        raise UserError("--verify needs torch and transformers: pip install -r requirements-torch.txt")
    lines = real_lines(arguments.text)
    with new_directory(arguments.output, "--output") as directory, open_weights(arguments.checkpoint) as weights:
        with Stage(f"Reading {weights.source}"):
            params, coverage = weights.load()
        model, tokenizer, labels = weights.config.model, weights.tokenizer, weights.labels
        params, model = extensions.without(params, model)
        training = training_of(weights) | {"exported_by": f"spanbert_jax {VERSION}"}
        export = Export(params, model, tokenizer, labels, training, arguments.output.name, weights.config.task)
        with Stage(f"Writing {arguments.output}"):
            name, groups = write_export(export, directory, arguments.dtype, arguments.encoder_only)
        report = [f"  {file.name:24}{file.stat().st_size:>14,} bytes" for file in sorted(directory.iterdir())]
        report.append(f"Holds: {', '.join(groups)}; for transformers' {name}")
        left = [group for group in params if group not in groups]
        is_pretrained = weights.metadata is not None and weights.metadata.task == "pretraining"
        left += [f"{head} (not trained)" for head in coverage.missing if is_pretrained]
        if left:
            report.append(f"Left out: {', '.join(left)}")
        report.append(tokenizer_report(export.tokenizer, directory, lines))
        if can_compare:
            with Stage("Comparing with PyTorch"):
                report.append(compare(export, directory, name, groups, arguments.dtype, lines))
        else:
            report.append(
                "Not compared with PyTorch: torch and transformers are not installed (requirements-torch.txt)"
            )
    print(*report, sep="\n")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir (its best or newest checkpoint), or checkpoints/STEP"
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="of the written weights")
    parser.add_argument(
        "--encoder-only",
        action="store_true",
        help="leave out the heads, so that AutoModel uses every tensor",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="fail where torch or transformers is missing, instead of skipping the comparison",
    )
    parser.add_argument(
        "--text", type=Path, help="real text to compare on, in the model's language; default: Python's documentation"
    )
    arguments = parser.parse_args(argv)
    return cli.status(lambda: convert(arguments))


if __name__ == "__main__":
    cli.run(main)
