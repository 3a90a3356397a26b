"""Exports a checkpoint for serving without this project: as StableHLO for JAX, or as a TensorFlow SavedModel.

    python tools/export_serving.py --checkpoint runs/tiny --output serving/ --format stablehlo

Invariant: one artefact takes every batch size and every length up to the model's, and computes in float32 on every
device. The directory appears only after the artefact, loaded again, gave the outputs of our own functions on real text.
"""

import importlib.util
from pathlib import Path

from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.files import new_directory

FORMATS = ("stablehlo", "saved_model")


def export_weights(checkpoint: Path, output: Path, kind: str) -> None:
    """Exports, compares, and prints a report. kind: one of FORMATS.

    Raises UserError where TensorFlow is missing, or the artefact disagrees with our functions.
    """
    import jax

    from spanbert_jax.convert.tokenizer_export import write_tokenizer
    from spanbert_jax.serving import saved_model, stablehlo
    from spanbert_jax.serving.artefact import compare, read_model
    from spanbert_jax.serving.artefact_readme import readme
    from spanbert_jax.serving.real_text import real_lines
    from spanbert_jax.serving.weights import open_weights
    from spanbert_jax.training.progress import Stage

    if kind == "saved_model" and not importlib.util.find_spec("tensorflow"):
        raise UserError("--format saved_model needs TensorFlow: pip install -r requirements.txt")
    write, read = {
        "stablehlo": (stablehlo.write_stablehlo, stablehlo.read_stablehlo),
        "saved_model": (saved_model.write_saved_model, saved_model.read_saved_model),
    }[kind]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # otherwise the artefacts name this machine's directories
    with open_weights(checkpoint) as weights, new_directory(output, "--output") as directory:
        with Stage(f"Reading {weights.source}"):
            model = read_model(weights)
        with Stage(f"Writing {output}"):
            write(model, directory)
            write_tokenizer(model.tokenizer, directory, model.max_length, token_types=model.token_types > 1)
            (directory / "README.md").write_text(readme(model, kind, directory, output.name), encoding="utf-8")
        with Stage("Loading it again and comparing"):
            said = compare(model, read(directory), real_lines(None))
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(output)!s:40}{file.stat().st_size:>14,} bytes")
    print(said)


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a workdir (its best or newest checkpoint), or checkpoints/STEP"
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="stablehlo is for JAX, saved_model for TensorFlow"
    )
    arguments = parser.parse_args(argv)
    return cli.status(lambda: export_weights(arguments.checkpoint, arguments.output, arguments.format))


if __name__ == "__main__":
    cli.run(main)
