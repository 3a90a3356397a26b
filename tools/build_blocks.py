"""Builds the blocks of a corpus on Apache Beam, for a corpus that would take one machine too long.

    python tools/build_blocks.py --config configs/base.py --data-dir OUT [--config.FIELD=VALUE ...] [--runner=... ...]

OUT gets the directories tokenizer/ and blocks/; train on them with --config.data.dir=OUT. The vocabulary is
--config.tokenizer.vocab_file, or the one in OUT/tokenizer. All flags that are not listed below go to Beam. Needs an
environment of its own with requirements-beam.txt alone.

Invariant: the files in OUT are byte for byte those that a run builds.
"""

import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from spanbert_jax import cli
from spanbert_jax.config import Config
from spanbert_jax.errors import UserError
from spanbert_jax.main import run_app


def main() -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", required=True, help="the experiment: a file in configs/")
    parser.add_argument("--data-dir", required=True, help="where tokenizer/ and blocks/ go; a bucket works")
    given, others = parser.parse_known_args()

    def work() -> NoReturn:
        fields, beam_arguments = fields_and_others(others)
        sys.argv = [sys.argv[0], f"--config={given.config}", *fields, f"--config.data.dir={given.data_dir}"]
        run_app(lambda config, _: build(config, beam_arguments))

    return cli.status(work)


def fields_and_others(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the flags of config fields, the other flags), each with its value where the value is an argument of its own.
    Raises UserError for a field without a value."""
    fields: list[str] = []
    others: list[str] = []
    found = others
    for argument, following in itertools.pairwise([*arguments, "--"]):
        if argument.startswith("--"):
            found = fields if argument.startswith("--config.") else others
            if found is fields and "=" not in argument and following.startswith("--"):
                raise UserError(f"{argument} has no value; give it as {argument}=VALUE")
        found.append(argument)
    return fields, others


def build(config: Config, beam_arguments: list[str]) -> int:
    """Builds; returns the exit status."""
    if config.corpus.pairs:
        raise UserError(
            "config.corpus.pairs is True, and Beam makes no pairs, since it reads each file alone and a pair may need "
            "two; build the blocks on one machine, as a run does, or set --config.corpus.pairs=False"
        )
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error}; make an environment for Beam: python3 -m venv .venv-beam && "
            ".venv-beam/bin/pip install -r requirements-beam.txt"
        ) from error
    from spanbert_jax.corpus.build_on_beam import build_with_beam

    began = time.monotonic()
    print(f"Building the blocks of {config.corpus.files or config.corpus.name} in {config.data.dir}/blocks ...")
    for line in build_with_beam(config, beam_arguments):
        print(line)
    directory = shlex.quote(config.data.dir)
    print(f"Built in {time.monotonic() - began:,.0f} s. Train on them with --config.data.dir={directory}")
    return 0


if __name__ == "__main__":
    cli.run(main)
