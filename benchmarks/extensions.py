"""The train step with each extension of the encoder, beside the step without: time, parameters and model FLOPs.

Invariant: both sides take the same steps (benchmarks/train_side.py) of a model of 4 layers of 256 numbers, on the same
rows of 256 pieces, in float32 and without dropout, and take turns.
"""

from benchmarks.measure import Options, Result, Side, alternate, median, started
from benchmarks.step import environment
from benchmarks.worker import Json

_SPEC: Json = {"size": "small", "dropout": "none", "length": 256, "batch": 4, "precision": "fp32"}
_STEPS = 4  # of a side in a round
EXTENSIONS: dict[str, Json] = {
    "head_scales=output": {"head_scales": "output"},
    "head_scales=full": {"head_scales": "full"},
    "attention_composition=2": {"attention_composition": 2},
    "context_encoder=mingru": {"context_encoder": "mingru"},
    "context_encoder=bilstm": {"context_encoder": "bilstm"},
    "span_embedding": {"span_embedding": True},
    "span_attention=own": {"span_attention": "own"},
    "span_attention=row": {"span_attention": "row"},
}


def run(options: Options) -> list[Result]:
    """The subject `extensions`: steps per second of each extension beside those of the bare encoder."""
    results = []
    for name, fields in EXTENSIONS.items():
        with (
            Side("train_side", {**_SPEC, "model": fields}, options.cores, environment("", "cpu")) as extended,
            Side("train_side", _SPEC, options.cores, environment("", "cpu")) as bare,
        ):
            sides = {"extended": extended, "bare": bare}
            started(sides, f"{name}: compiling")
            answers = alternate(sides, options.rounds, {"steps": _STEPS}, name)
        speeds = {side: [_STEPS / answer["seconds"] for answer in answers[side]] for side in sides}
        more = {fact: extended.facts[fact] / bare.facts[fact] - 1 for fact in ("parameters", "row_flops")}
        counted = (
            "train steps of 4 rows of 256 pieces, 4 layers x 256, float32; beside the encoder without the extension: "
            f"parameters {more['parameters']:+.1%}, model FLOPs {more['row_flops']:+.1%}"
        )
        ours, theirs = (median(speeds[side]) for side in ("extended", "bare"))
        results.append(Result(f"step with {name}", ours, "steps/s", theirs, counted, speeds))
    return results
