"""Serves trained weights over HTTP.

    python -m spanbert_jax.serve --checkpoint runs/squad
    curl localhost:8000/answer -d '{"question": "Who lived in London?", "context": "Ada Lovelace lived in London."}'

Several checkpoints are served by one process: --checkpoint qa=runs/squad --checkpoint ner=runs/conll. The first answers
requests that name none. docs/serving.md has the routes and the statuses; /openapi.json has the types.

Invariant: the server listens on this machine alone unless --host says otherwise, and sends nothing anywhere.
"""

import argparse
import importlib.util
import re
import sys
import threading
from pathlib import Path

from spanbert_jax import cli
from spanbert_jax.errors import UserError

_LIBRARIES = ("starlette", "uvicorn", "msgspec", "orjson")
_NAME = re.compile(r"[\w.-]+")


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        action="append",
        required=True,
        metavar="[NAME=]PATH",
        help="a run, an import, or others' weights",
    )
    add("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0: every one of this machine")
    add("--port", type=int, default=8000, help="0: a free one")
    add("--api-key-file", type=Path, help="keys, one a line; a request must send one of them as Authorization: Bearer")
    add("--max-inputs", type=_positive, default=32, help="inputs in a request")
    add("--max-input-pieces", type=_pieces, default=512, help="pieces of a text to embed")
    add("--max-body-bytes", type=_positive, default=2_000_000)
    add("--max-batch-pieces", type=_positive, default=8192, help="rows x length of a batch")
    add(
        "--max-queued-pieces",
        type=_positive,
        default=262_144,
        help="in flight, with their padding; more gets status 429",
    )
    add("--max-queued-inputs", type=_positive, default=4096, help="in flight; more gets status 429")
    add("--overflow", choices=("truncate", "error"), default="truncate", help="for texts that are too long")
    add("--deadline", type=_seconds, default=30.0, help="seconds that a request may take")
    add("--drain-seconds", type=_seconds, default=30.0, help="that requests in flight have after SIGTERM")
    add("--warmup", choices=("small", "all"), default="small", help="the programs that are compiled before serving")
    add("--deterministic", action="store_true", help="bitwise equal answers in any company; slower under load")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="in which texts are encoded")
    add("--workers", type=_positive, default=2, help="threads that tokenise")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: _serve(arguments))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def _pieces(text: str) -> int:
    number = _positive(text)
    if number < 3:
        raise argparse.ArgumentTypeError(f"{number} leaves no room for text beside [CLS] and [SEP]; give 3 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= threading.TIMEOUT_MAX:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {threading.TIMEOUT_MAX:,.0f} seconds")
    return number


def sources(given: list[str]) -> dict[str, Path]:
    """The paths of --checkpoint by name: NAME, or the last part of PATH. Raises UserError where a name comes twice."""
    found: dict[str, Path] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not equals or not _NAME.fullmatch(name):
            name, path = Path(one).resolve().name, one
        if name in found:
            raise UserError(f"--checkpoint: two are named {name}; write NAME=PATH")
        found[name] = Path(path)
    return found


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install -r requirements-serve.txt")
    from spanbert_jax.service.keys import read_keys
    from spanbert_jax.service.server import bind, run
    from spanbert_jax.service.service import Settings, open_service
    from spanbert_jax.serving.scheduler import Limits

    keys = read_keys(arguments.api_key_file) if arguments.api_key_file else ()
    if not keys and arguments.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"warning: --host {arguments.host} without --api-key-file: anyone may use the server", file=sys.stderr)
    paths = sources(arguments.checkpoint)
    limits = Limits(arguments.max_batch_pieces, arguments.max_queued_pieces, arguments.max_queued_inputs)
    settings = Settings(
        max_body_bytes=arguments.max_body_bytes,
        max_inputs=arguments.max_inputs,
        max_input_pieces=arguments.max_input_pieces,
        deadline=arguments.deadline,
        truncate=arguments.overflow == "truncate",
        deterministic=arguments.deterministic,
        dtype=arguments.dtype,
        workers=arguments.workers,
        limits=limits,
        keys=keys,
    )
    with bind(arguments.host, arguments.port) as listening:
        service = open_service(paths, settings)
        host, port = listening.getsockname()[:2]
        for name, one in service.checkpoints.items():
            does = one.loaded.task or " and ".join(one.loaded.piece_heads) or "embeddings alone"
            print(f"{name}: {one.loaded.source} ({does})")
        print(f"Listening on http://{f'[{host}]' if ':' in host else host}:{port}; compiling", flush=True)
        return run(service, listening, arguments.warmup == "all", arguments.drain_seconds)


if __name__ == "__main__":
    cli.run(main)
