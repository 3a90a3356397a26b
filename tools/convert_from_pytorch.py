"""Makes a checkpoint of this project from weights that others publish.

    python tools/convert_from_pytorch.py --input DIR_OR_FILE --output runs/imported

DIR_OR_FILE: a Hugging Face BERT, SpanBERT or ModernBERT (safetensors or pytorch_model.bin), SpanBERT's archives
(spanbert_hf.tar.gz, spanbert_large_with_head.tar.gz) or the model.pt in one, or a TensorFlow-1 BERT (bert_model.ckpt).

Invariant: every tensor of the input is either taken or named as left alone. The output directory appears when it is
complete.
"""

import collections
import dataclasses
import re
import runpy
import shlex
from pathlib import Path

from etils import epath

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import new_directory


def summary(names: tuple[str, ...]) -> str:
    """All names, except that more than four names with the same ending become their number: "24 x */bias"."""
    endings = {name: re.split(r"[./]", name)[-1] for name in names}
    counts = collections.Counter(endings.values())
    alone = [name for name in names if counts[endings[name]] <= 4]
    return ", ".join(alone + [f"{count} x */{ending}" for ending, count in counts.items() if count > 4])


def convert(source: Path, output: Path, vocab: Path | None) -> None:
    """Imports the weights, and prints which tensors were taken, missing or left alone.

    Raises UserError where `source` has no weights that can be imported, or `output` exists and is not empty.
    """
    from spanbert_jax.model import pretraining_heads
    from spanbert_jax.serving.weights import open_weights
    from spanbert_jax.training.checkpoint import CHECKPOINTS, TOKENIZER, is_run, write_params
    from spanbert_jax.training.metadata import Metadata, config_to_json
    from spanbert_jax.training.progress import Stage

    if is_run(epath.Path(source)):
        raise UserError(f"{source} is already a checkpoint of this project; use it with --config.init_from={source}")
    with new_directory(output, "--output") as directory:
        with Stage(f"Reading {source}"), open_weights(source, vocab) as weights:
            params, report = weights.load()
        model, tokenizer = weights.config.model, weights.tokenizer
        metadata = Metadata(
            task="imported",
            step=0,
            config=weights.config,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            labels=weights.labels,
            imported_from=str(source),
            left_alone=report.left,
        )
        with Stage(f"Writing {output}"):
            imported = dataclasses.replace(weights.config, init_from=str(source))
            (directory / "config.json").write_text(config_to_json(imported))
            tokenizer.save(directory / TOKENIZER)
            write_params(epath.Path(directory) / CHECKPOINTS, params, metadata)
    print(
        f"{source}: {weights.kind}, {model.layers} layers x {model.embed}, {model.heads} heads; "
        f"{tokenizer.vocab_size:,} pieces ({tokenizer.kind})"
    )
    for note in weights.notes:
        print(note)
    print(f"Taken: {', '.join(report.taken)}" + (f" ({', '.join(weights.labels)})" if weights.labels else ""))
    descriptions = {head.name: head.description for head in pretraining_heads.HEADS}
    for head in report.missing:
        print(f"Missing: {head}, the {descriptions[head]} head; pre-training from here initialises this head anew")
    if report.left:
        print(f"Left alone, {len(report.left)} tensors: {summary(report.left)}")
    recipe = "configs/modern_base.py" if model.family == "modern" else "configs/base.py"
    config = runpy.run_path(str(Path(__file__).parents[1] / recipe))["get_config"]()
    flags = {"init_from": shlex.quote(str(output))}
    if model.max_length < config.data.block_length:
        flags["data.block_length"] = str(model.max_length)
    if weights.span_boundary not in (None, (config.masking.max_span_offset, config.model.span_offset_embed)):
        offsets, width = weights.span_boundary
        flags |= {"masking.max_span_offset": str(offsets), "model.span_offset_embed": str(width)}
    given = " ".join(f"--config.{field}={value}" for field, value in flags.items())
    command = f"python -m spanbert_jax.main --config {recipe} {given}"
    print(f"\nTrain from it:  {command}")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="the weights, a directory or file")
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--vocab", type=Path, help="vocab.txt, .model or tokenizer.json, where the weights have none beside them"
    )
    arguments = parser.parse_args(argv)
    return cli.status(lambda: convert(arguments.input, arguments.output, arguments.vocab))


if __name__ == "__main__":
    cli.run(main)
