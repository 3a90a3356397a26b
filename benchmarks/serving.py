"""Measures the service: a real server on loopback, with its load from another process.

    python -m benchmarks.serving --minilm ../shared/data/checkpoints/minilm_l6 --markdown serving.md

Measured are, each beside its other side:

- pieces/s through HTTP at saturation (base64, 32 inputs a request, 64 clients), over those of the bare jitted forward
  on the same texts in the batches that the engine would make of them: base-sized model, random weights;
- padded over real pieces at saturation, on paragraphs of Wikipedia;
- the median time of one short text through HTTP, and over the bare forward;
- p99 of single paragraphs at 80% of the load that the server carries (an open loop), in device batches;
- three times the load that a server with a model of known speed carries (an open loop): how each request ended, and
  the server's memory over --minutes;
- embedding without a server: the engine over transformers' BertModel on torch behind the same engine, and over
  sentence-transformers' own batching, written out over transformers.

Invariant: server and client share this machine's cores, as a service and its proxy would. All that is started ends with
this process. A goal stands beside its measurement and decides nothing.
"""

import argparse
import base64
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.measure import ROOT, Result, Side, SideFailed, alternate, median, need, need_text, started
from benchmarks.serving_load import FAILED, LOST, REFUSED, RIGHT, SWAPPED, percentile
from benchmarks.worker import Json
from spanbert_jax import cli
from spanbert_jax.errors import UserError
from spanbert_jax.training.progress import Stage

SHARED = ROOT.parent / "shared" / "data"
SHORT = "Ada Lovelace lived in London."
_FAKE_RATE = 100.0  # rows a second of the model whose answers are hashes
_SIZES = {"tiny": (2, 128), "base": (12, 768)}  # layers, embed
_CLIENTS, _INPUTS = 64, 32


class Server:
    """A server in a process of its own, ready for requests."""

    def __init__(self, module: str, arguments: Sequence[str]):
        """Starts `python -m module --port 0 ...`, and waits until it is ready; raises SideFailed where it ends
        before."""
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by `close`
        command = [sys.executable, "-m", module, "--port", "0", *arguments]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=ROOT, stdin=subprocess.DEVNULL
        )
        self.port = 0
        try:
            self._wait(module)
        except BaseException:
            self.close()
            raise

    def _wait(self, module: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.match(r"Listening on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
            if line.startswith("Ready"):
                break
        else:
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:]
            raise SideFailed(f"{module} ended with status {self._process.wait()}: {''.join(last)[:300]}")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    def resident(self) -> float:
        """MB of the server's memory that are resident."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found
        return int(found[1]) / 1000

    def pieces(self, model: str) -> tuple[float, float]:
        """(padded, real) pieces that the model has computed so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        counts = []
        for kind in ("padded", "real"):
            found = re.search(rf'^spanbert_batch_pieces_total{{kind="{kind}",model="{model}"}} (\S+)', text, re.M)
            counts.append(float(found[1]) if found else 0.0)
        return counts[0], counts[1]

    def close(self) -> None:
        """Ends the server."""
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Plan(NamedTuple):
    """The sizes of all measurements, from the command line."""

    minilm: Path
    base: Path  # random weights
    paragraphs: Path  # a JSON file of texts
    beginnings: Path  # the first words of the same texts
    requests: int  # of 32 inputs, at saturation
    short: int  # requests of one short text
    seconds: float  # at 80% load
    minutes: float  # at three times the load
    longest: int
    batch_pieces: int
    rounds: int

    def serve(self, checkpoint: Path) -> Server:
        """A server of the checkpoint, named "m", with all programs compiled."""
        flags = {"checkpoint": f"m={checkpoint}", "warmup": "all", "deadline": 600, "max-queued-pieces": 10**8}
        flags |= {"max-input-pieces": self.longest, "max-batch-pieces": self.batch_pieces}
        return Server("spanbert_jax.serve", [f"--{name}={value}" for name, value in flags.items()])

    def side(self, side: str, checkpoint: Path, texts: Path) -> Side:
        """A side of serving_sides.py, not ready yet."""
        spec = {"side": side, "checkpoint": str(checkpoint), "texts": str(texts), "short": SHORT}
        return Side("serving_sides", spec | {"longest": self.longest, "batch_pieces": self.batch_pieces}, ())


def _load(server: Server, model: str, texts: Path | None) -> Side:
    """A client, not ready yet."""
    spec = {"port": server.port, "model": model, "texts": str(texts) if texts else ""}
    return Side("serving_load", spec, ())


@contextlib.contextmanager
def _against_bare(plan: Plan, checkpoint: Path, texts: Path) -> Iterator[tuple[Server, Side, Side]]:
    """(a server, its client, the bare forward) of a checkpoint."""
    with contextlib.ExitStack() as stack:
        with Stage("Starting the server and the bare forward"):
            server = stack.enter_context(contextlib.closing(plan.serve(checkpoint)))
            load = stack.enter_context(_load(server, "m", texts)).ready()
            bare = stack.enter_context(plan.side("bare", checkpoint, texts)).ready()
        yield server, load, bare


def _saturate(load: Side, plan: Plan) -> Json:
    return _answered(load.ask({"inputs": _INPUTS, "clients": _CLIENTS, "requests": plan.requests}))


def _answered(answer: Json) -> Json:
    """The client's answer; raises SideFailed where a request was not answered rightly."""
    if set(answer["verdicts"]) != {RIGHT}:
        raise SideFailed(f"not every request was answered: {answer['verdicts']}")
    return answer


def throughput(plan: Plan) -> list[Result]:
    """Pieces/s through HTTP beside those of the bare forward."""
    values: dict[str, list[float]] = {"ours": [], "theirs": []}
    with _against_bare(plan, plan.base, plan.beginnings) as (_, load, bare), Stage("Saturating the server") as stage:
        for number in range(plan.rounds):
            stage.update(number / plan.rounds, f"round {number + 1} of {plan.rounds}")
            for name, answer in (("ours", _saturate(load, plan)), ("theirs", bare.ask({"short": 0}))):
                values[name].append(answer["pieces"] / answer["seconds"])
    what = f"pieces through HTTP, over the bare forward, {plan.base.name} (goal 0.9)"
    counted = f"real pieces, {_CLIENTS} clients, {_INPUTS} inputs a request, base64; {plan.requests} requests a round"
    ours, theirs = median(values["ours"]), median(values["theirs"])
    return [Result(what, ours, "pieces/s", theirs, counted, values)]


def latencies(plan: Plan) -> list[Result]:
    """Padding at saturation, the overhead for a short text, and p99 at 80% of the load that was carried."""
    with _against_bare(plan, plan.minilm, plan.paragraphs) as (server, load, bare):
        with Stage("Saturating the server with paragraphs"):
            before = server.pieces("m/embed")
            saturated = _saturate(load, plan)
            padded, real = np.subtract(server.pieces("m/embed"), before)
        with Stage("80% of that load"):
            rate = 0.8 * _INPUTS * plan.requests / saturated["seconds"]
            loaded = _answered(load.ask({"inputs": 1, "rate": rate, "seconds": plan.seconds}))
            batch = median(bare.ask({"short": 0})["batch_seconds"])
        with Stage("One short text at a time"):
            results = _overhead(plan, server, bare)
    p99 = percentile(loaded["latencies"], 0.99)
    counted = f"one paragraph a request, {rate:.3g} a second for {plan.seconds:.0f} s; theirs: the largest batch, bare"
    shown = {"rate": rate, "p50": percentile(loaded["latencies"], 0.5)}
    return [
        Result("padded over real pieces at saturation (goal 1.25)", float(padded), "pieces", float(real), "paragraphs"),
        *results,
        Result("p99 at 80% load, over a device batch (goal 2)", 1000 * p99, "ms", 1000 * batch, counted, {}, shown),
    ]


def _overhead(plan: Plan, server: Server, bare: Side) -> list[Result]:
    file = plan.paragraphs.with_name("short.json")
    file.write_text(json.dumps([SHORT]))
    ours, theirs = [], []
    with _load(server, "m", file) as load:
        load.ready()
        for _ in range(plan.rounds):
            answer = _answered(load.ask({"inputs": 1, "clients": 1, "requests": plan.short}))
            ours.append(1000 * percentile(answer["latencies"], 0.5))
            theirs.append(1000 * median(bare.ask({"short": plan.short})["seconds"]))
    counted = f"median of {plan.short} requests, one after the other, on one connection"
    extra = [a - b for a, b in zip(ours, theirs, strict=True)]
    values = {"ours": ours, "theirs": theirs}
    return [
        Result(
            "one short text through HTTP, over the bare forward", median(ours), "ms", median(theirs), counted, values
        ),
        Result("overhead for one short text (goal 2 ms)", median(extra), "ms", None, counted, {"ours": extra}),
    ]


def overload(plan: Plan) -> list[Result]:
    """How requests end at three times the load that the server can carry, and the server's memory."""
    memory: list[float] = []
    rate, seconds = 3 * _FAKE_RATE, 60 * plan.minutes
    with (
        contextlib.closing(Server("benchmarks.serving_fake", [f"--rows-per-second={_FAKE_RATE}"])) as server,
        _load(server, "fake", None) as load,
        Stage(f"Three times the load, for {plan.minutes:g} minutes"),
    ):
        load.ready()
        answer = load.ask({"inputs": 1, "rate": rate, "seconds": seconds}, lambda: memory.append(server.resident()))
        memory.append(server.resident())
    verdicts = {name: answer["verdicts"].get(name, 0) for name in (RIGHT, REFUSED, SWAPPED, LOST, FAILED)}
    sent = sum(verdicts.values())
    counted = (
        f"{rate:.0f} requests a second of one text, the model computes {_FAKE_RATE:.0f}; theirs: all that were sent"
    )
    results = [
        Result(f"three times the load: {name}", float(count), "requests", float(sent), counted)
        for name, count in verdicts.items()
    ]
    slowest = {"slowest_refusal": answer["slowest_refusal"], "p99": percentile(answer["latencies"], 0.99)}
    what = "memory at the end of that load, over that after a fifth (goal 1)"
    early = memory[len(memory) // 5]
    return [*results, Result(what, memory[-1], "MB", early, "resident", {"ours": memory}, slowest)]


def peers(plan: Plan) -> list[Result]:
    """Embedding all paragraphs without a server: the engine beside two peers, and how far their vectors differ."""
    need("torch")
    need("transformers")
    names = {"ours": "ours", "torch": "transformers on torch behind the same engine"}
    names["loop"] = "sentence-transformers' batching, written out over transformers"
    results = []
    for checkpoint, texts in ((plan.minilm, plan.paragraphs), (plan.base, plan.beginnings)):
        with contextlib.ExitStack() as stack:
            sides = {side: stack.enter_context(plan.side(side, checkpoint, texts)) for side in names}
            started(sides, f"Starting the sides, {checkpoint.name}")
            answers = alternate(sides, plan.rounds, {}, f"Embedding, {checkpoint.name}")
        speeds = {side: [one["pieces"] / one["seconds"] for one in of] for side, of in answers.items()}
        vectors = {side: decoded(of[0]) for side, of in answers.items()}
        for side in ("torch", "loop"):
            what = f"embedding, {checkpoint.name}, over {names[side]}"
            values = {"ours": speeds["ours"], "theirs": speeds[side]}
            results.append(
                Result(what, median(speeds["ours"]), "pieces/s", median(speeds[side]), "real pieces", values)
            )
            apart = float(np.abs(vectors["ours"] - vectors[side]).max())
            what = f"largest difference of vectors, {checkpoint.name}, from {names[side]} (goal 1e-5)"
            results.append(Result(what, apart, "", None, "of 64 texts, vectors of length 1"))
    return results


def decoded(answer: Json) -> np.ndarray:
    """The vectors of a side's answer, float32 [texts, embed]."""
    return np.frombuffer(base64.b64decode(answer["vectors"]), "<f4").reshape(-1, answer["embed"])


def write_random(folder: Path, size: str, vocab: Path) -> Path:
    """A Hugging Face directory of a BERT of the size with random weights."""
    need("transformers")
    import torch
    from transformers import BertConfig, BertModel

    layers, embed = _SIZES[size]
    pieces = vocab.read_text(encoding="utf-8").splitlines()
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=embed,
        num_hidden_layers=layers,
        num_attention_heads=embed // 64,
        intermediate_size=4 * embed,
    )
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / size)
    (folder / size / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    tokenizer = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    (folder / size / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder / size


def paragraphs(path: Path, count: int) -> list[str]:
    """The first paragraphs of at least eight words in the files below a path. Raises UserError where they are fewer."""
    found: list[str] = []
    for file in need_text(path, "--text"):
        lines = file.read_text(encoding="utf-8").splitlines()
        found += [line for line in lines if len(line.split()) >= 8]
        if len(found) >= count:
            return found[:count]
    raise UserError(
        f"{path}: {len(found):,} paragraphs of eight words; {count:,} are needed; name more text with --text"
    )


SUBJECTS = {"throughput": throughput, "latencies": latencies, "overload": overload, "peers": peers}


def main(argv: list[str] | None = None) -> int:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("--minilm", type=Path, default=SHARED / "checkpoints" / "minilm_l6", help="a BERT, a Hugging Face directory")
    add("--size", choices=sorted(_SIZES), default="base", help="of the model with random weights")
    add("--text", type=Path, default=SHARED / "text" / "enwiki2015", help="a paragraph a line")
    add("--vocab", type=Path, default=SHARED / "vocab" / "bert-base-cased-vocab.txt", help="a vocab.txt")
    add("--requests", type=int, default=128, help="of 32 inputs, at saturation")
    add("--short", type=int, default=300, help="requests of one short text")
    add("--seconds", type=float, default=120.0, help="at 80%% load")
    add("--minutes", type=float, default=10.0, help="at three times the load")
    add("--longest", type=int, default=128, help="pieces of a text; longer ones are cut")
    add("--batch-pieces", type=int, default=8192, help="rows x length of a batch")
    add("--words", type=int, default=16, help="of each paragraph that the base-sized model embeds")
    add("--rounds", type=int, default=3, help="of which the median is taken")
    add("--only", choices=sorted(SUBJECTS), action="append", help="measure this alone; may be repeated")
    add("--json", type=Path, metavar="FILE", help="write every number to this file")
    add("--markdown", type=Path, metavar="FILE", help="write the table to this file")
    arguments = parser.parse_args(argv)
    return cli.status(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Measures, prints and writes; raises UserError where a measured process failed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = paragraphs(arguments.text, _INPUTS * arguments.requests)
        (folder / "paragraphs.json").write_text(json.dumps(texts))
        cut = [" ".join(text.split()[: arguments.words]) for text in texts]
        (folder / "beginnings.json").write_text(json.dumps(cut))
        plan = Plan(
            arguments.minilm.resolve(),
            write_random(folder, arguments.size, arguments.vocab),
            folder / "paragraphs.json",
            folder / "beginnings.json",
            **{name: getattr(arguments, name) for name in Plan._fields[4:]},
        )
        results: list[Result] = []
        for name in arguments.only or SUBJECTS:
            try:
                results += SUBJECTS[name](plan)
            except SideFailed as error:
                raise UserError(f"{name}: a measured process failed: {error}") from error
    report.show(results)
    report.save(results, arguments.json, None, arguments.markdown)


if __name__ == "__main__":
    cli.run(main)
