"""Measures this program's train step, input, corpus building, saves and starts, and compares some with PyTorch.

    python tools/benchmark.py step --size large --precision bf16      on an accelerator: sweeps, prints the best
    python tools/benchmark.py step --size base --peer transformers --peer pytorch
    python tools/benchmark.py all --json results.json --plot results.svg --markdown results.md

Every number is the median of several rounds. Two sides that are compared take turns, round by round. Each side has a
process of its own, with the same cores and as many threads. So their thread pools do not compete, and a machine that
gets slower or faster does so for both. `SUBJECT --help` says what is measured and what is counted.

Invariant: this module imports the libraries of a subject only when that subject is measured.
"""

import argparse
import ast
import importlib
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import ROOT, Options, Result, SideFailed, cores_of
from spanbert_jax import cli
from spanbert_jax.errors import UserError

SHARED = ROOT.parent / "shared" / "data"
SUBJECTS = {
    "step": "the train step: sequences/s, model FLOPs, MFU, memory; --peer compares; sweeps on an accelerator",
    "input": "the input pipeline on one core, in blocks/s, compared with transformers' whole-word-mask collator",
    "padding": "real pieces/s of rows in length buckets, compared with rows all padded to 512, and the padding left",
    "corpus": "building a corpus: MB/s of raw text read, split, tokenised, packed and written",
    "window": "attention with a sliding window on the CPU: the banded form beside the dense one, time and memory",
    "extensions": "the train step with each extension of the encoder, beside the step without it, on the CPU",
    "save": "an asynchronous checkpoint at base size: the time that the training loop stands still",
    "start": "seconds to the first step with a warm compilation cache; waiting for input; peak host memory",
    "all": "every subject that makes sense on this machine",
}


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    return cli.status(lambda: benchmark(arguments))


def benchmark(arguments: argparse.Namespace) -> None:
    """Measures, prints and writes; raises UserError where a measured process failed."""
    try:
        results = measure(arguments)
    except SideFailed as error:
        raise UserError(f"{arguments.subject}: a measured process failed: {error}") from error
    report.show(results)
    report.save(results, arguments.json, arguments.plot, arguments.markdown)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    subjects = top.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, what in SUBJECTS.items():
        text = __doc__ if name == "all" else _docstring(ROOT / "benchmarks" / f"{name}.py")
        sub = subjects.add_parser(name, help=what, description=text, formatter_class=raw)
        sub.add_argument("--rounds", type=_positive, default=3, help="rounds of which the median is taken; default 3")
        sub.add_argument(
            "--cores", type=_positive, help="cores that each side may use; default: all that this process may use"
        )
        sub.add_argument("--json", type=Path, metavar="FILE", help="write every number to this file")
        sub.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the comparisons (needs matplotlib)")
        sub.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as docs/speed.md has it")
        if name == "step":
            _step_arguments(sub)
        else:
            sub.add_argument("--text", type=Path, default=SHARED / "text", help="raw text; default ../shared/data/text")
            sub.add_argument(
                "--vocab",
                type=Path,
                default=SHARED / "vocab" / "bert-base-cased-vocab.txt",
                help="a vocab.txt, a SentencePiece .model or a tokenizer.json; default BERT's cased one in "
                "../shared/data/vocab",
            )
            sub.add_argument(
                "--work", type=Path, default=ROOT / "runs" / "benchmark", help="keeps blocks; default runs/benchmark"
            )
        if name == "corpus":
            sub.add_argument("--spans", default="", metavar="RULES", help="config.corpus.spans to compare with")
    return top


def _docstring(path: Path) -> str:
    """The docstring of a module, without importing it: it may need libraries that are not installed."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _step_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--size",
        choices=("tiny", "small", "base", "large"),
        default="base",
        help="of the model: 2 layers x 128, 4 x 256, or BERT's base and large; default base",
    )
    sub.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32 on CPU, bf16 elsewhere")
    sub.add_argument("--length", type=_positive, default=512, help="pieces in a row; default 512")
    sub.add_argument("--batch", type=_positive, help="rows on one device; default on an accelerator: several are tried")
    sub.add_argument("--attention", help="config.compute.attention; default on an accelerator: its kernels are tried")
    sub.add_argument(
        "--unroll", choices=("yes", "no"), help="config.compute.unroll; default on an accelerator: both are tried"
    )
    sub.add_argument(
        "--dropout",
        choices=("none", "hidden", "both"),
        help="where dropout is 0.1: nowhere, on hidden states, or there and on attention",
    )
    sub.add_argument(
        "--flags", metavar="FLAGS", help="for XLA, as --flags='--xla_...'; default on an accelerator: some are tried"
    )
    sub.add_argument(
        "--peer",
        choices=("transformers", "pytorch"),
        action="append",
        default=[],
        help="compare with this implementation; may be repeated",
    )
    sub.add_argument(
        "--minutes", type=float, default=6.0, help="a sweep starts no new trial after this many; default 6"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def measure(arguments: argparse.Namespace) -> list[Result]:
    """The results of the subject that was asked for."""
    options = options_of(arguments)
    if arguments.subject == "all":
        from benchmarks import everything

        return everything.run(options)
    module: Any = importlib.import_module(f"benchmarks.{arguments.subject}")
    if arguments.subject != "step":
        results: list[Result] = module.run(options)
        return results
    unroll = None if arguments.unroll is None else arguments.unroll == "yes"
    names = ("size", "precision", "length", "batch", "attention", "dropout")
    spec = {name: getattr(arguments, name) for name in names} | {"unroll": unroll}
    free = [name for name in ("attention", "unroll", "batch") if spec[name] is None]
    free += [] if arguments.flags else ["flags"]
    return module.run(spec, free, arguments.flags or "", arguments.peer, arguments.minutes, options)


def options_of(arguments: argparse.Namespace) -> Options:
    """The options of all subjects; raises UserError where --cores asks for more cores than this process may use."""
    work, text, vocab = (getattr(arguments, name, Path()).resolve() for name in ("work", "text", "vocab"))
    spans = getattr(arguments, "spans", "")
    return Options(arguments.rounds, cores_of(arguments.cores), work, text, vocab, spans)


if __name__ == "__main__":
    cli.run(main)
