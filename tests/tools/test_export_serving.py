"""tools/export_serving.py, as a user runs it; what it wrote runs in processes that have nothing of this project."""

import contextlib
import io
import itertools
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from etils import epath
from jax import export
from safetensors.numpy import load_file

from spanbert_jax.model import linear_heads, pretraining_heads
from spanbert_jax.serving import stablehlo
from spanbert_jax.serving.functions import functions
from spanbert_jax.text.tokenizer import Tokenizer
from spanbert_jax.training.checkpoint import write_params
from spanbert_jax.training.metadata import Metadata
from tests.support.synthetic import small_config
from tools import export_serving

ROOT = Path(__file__).resolve().parents[2]
KINDS, MODELS = ("stablehlo", "saved_model"), ("pretraining", "classification")
EXPORTS = list(itertools.product(KINDS, MODELS))
LONGEST = 32
CALLED = {"pretraining": ("encode", "predict"), "classification": ("predict",)}  # to encode is the same in both
SHAPES = ((1, 1), (3, 7), (2, LONGEST))  # the tool compares at (8, LONGEST)
ROUNDING = 3e-5  # of values up to 5, in float32, by two compilers
LABELS = ("no", "perhaps", "yes")
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = string.ascii_letters
TOKENIZER = Tokenizer(
    "wordpiece", "\n".join((*SPECIALS, *LETTERS, *(f"##{c}" for c in LETTERS), *".!?")).encode(), lowercase=False
)
EXTENDED = {"head_scales": "full", "attention_composition": 2, "context_encoder": "mingru"}
EXTENDED |= {"span_embedding": True, "span_attention": "row"}
CONFIGS = {"pretraining": small_config(model=EXTENDED, corpus={"spans": "capitals"}), "classification": small_config()}

# Runs the README's lines, then calls what they loaded on inputs.npz; writes all outputs to a file a kind.
FRESH = """
import sys
for name in BLOCKED:
    sys.modules[name] = None  # an import raises ImportError
import pathlib, re
import numpy as np
given, outputs = np.load("inputs.npz"), {}
for model in CALLED:
    readme = pathlib.Path(f"KIND-{model}/README.md").read_text()
    scope = {}
    exec(re.search("```python\\n(.*?)```", readme, re.DOTALL)[1], scope)
    def call(what, *inputs):
        if "functions" in scope:
            return scope["functions"][what](scope["params"], *inputs)
        names = ("input_ids", "lengths", "token_type_ids")
        (output,) = scope["model"].signatures[what](**dict(zip(names, map(scope["tf"].constant, inputs)))).values()
        return output
    for what in CALLED[model]:
        for case in ("0", "1", "2", "padding"):
            inputs = [given[f"{case}/{name}"] for name in ("input_ids", "lengths", "token_type_ids")]
            outputs[f"{model}/{what}/{case}"] = np.asarray(call(what, *inputs))
    own = scope["inputs"].values() if isinstance(scope["inputs"], dict) else scope["inputs"]
    for name, value in zip(("input_ids", "lengths", "token_type_ids"), own):
        outputs[f"{model}/readme/{name}"] = np.asarray(value)
    outputs[f"{model}/readme/encode"] = np.asarray(scope["hidden_states"])
    outputs[f"{model}/readme/predict"] = np.asarray(scope["logits"])
    try:
        call("encode", np.ones((1, LONGEST + 1), np.int32), np.ones(1, np.int32), np.zeros((1, LONGEST + 1), np.int32))
        outputs[f"{model}/too_long"] = "nothing was raised"
    except Exception as error:
        outputs[f"{model}/too_long"] = str(error)
np.savez("KIND.npz", **outputs)
"""


class Served(NamedTuple):
    folder: Path  # with a run and its two exports for each of MODELS
    params: dict[str, Any]
    printed: dict[tuple[str, str], str]
    inputs: dict[str, tuple[np.ndarray, ...]]  # case -> (input_ids, lengths, token_type_ids)
    outputs: dict[str, Any]  # kind -> what a fresh process computed

    computed: dict[str, Any]  # model -> our own functions

    def ours(self, model: str, what: str, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.asarray(self.computed[model][what](self.params[model], *inputs))


def write_runs(folder: Path) -> dict[str, Any]:
    """A run a model, with weights so large that every part of the model shows in the output; its parameters. The
    pre-trained one has every extension of the encoder."""
    rng, vocab = np.random.default_rng(0), TOKENIZER.vocab_size
    pretraining = pretraining_heads.pretraining_model(CONFIGS["pretraining"], vocab, "cpu")
    task = linear_heads.task_model("sequence_classification", CONFIGS["classification"], vocab, len(LABELS), "cpu")
    shapes = {
        "pretraining": jax.eval_shape(lambda: pretraining_heads.init_params(pretraining, jax.random.key(0))),
        "classification": jax.eval_shape(lambda: linear_heads.init_params(task, jax.random.key(0))),
    }

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.normal(float(path[-1].key == "scale"), 0.2, leaf.shape).astype(np.float32)

    params = {model: jax.tree_util.tree_map_with_path(draw, tree) for model, tree in shapes.items()}
    for model, tree in params.items():
        TOKENIZER.save(folder / model / "tokenizer")
        metadata = Metadata(model, 0, CONFIGS[model], labels=LABELS if model == "classification" else ())
        write_params(epath.Path(folder / model / "checkpoints"), tree, metadata)
    return params


def make_inputs() -> dict[str, tuple[np.ndarray, ...]]:
    """Random rows of each of SHAPES, the last one of each full; and those of shape 1 with other ids as padding."""
    rng = np.random.default_rng(1)
    inputs: dict[str, tuple[np.ndarray, ...]] = {}
    for case, (batch, length) in enumerate(SHAPES):
        ids = rng.integers(0, TOKENIZER.vocab_size, (batch, length)).astype(np.int32)
        lengths = np.linspace(1, length, batch + 1)[1:].astype(np.int32)
        inputs[str(case)] = ids, lengths, rng.integers(0, 2, (batch, length)).astype(np.int32)
    ids, lengths, types = inputs["1"]
    valid = np.arange(ids.shape[1]) < lengths[:, None]
    inputs["padding"] = np.where(valid, ids, TOKENIZER.vocab_size - 1 - ids), lengths, np.where(valid, types, 1 - types)
    assert not np.array_equal(inputs["padding"][0], ids)
    return inputs


def finish(processes: dict[Any, subprocess.Popen[str]]) -> dict[Any, str]:
    """What they printed, once they have all ended well."""
    printed = {}
    for key, process in processes.items():
        out, error = process.communicate()
        assert process.returncode == 0, f"{key}: {error}"
        printed[key] = out
    return printed


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextlib.contextmanager
def locations_as_before() -> Iterator[None]:
    """Gives back the setting of JAX that the tool changes for its process."""
    limit = jax.config.values["jax_traceback_in_locations_limit"]
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def export_here(checkpoint: object, output: object, kind: str, expect: int = 0) -> str:
    """Runs the tool in this process; returns what it printed."""
    arguments = [f"--checkpoint={checkpoint}", f"--output={output}", f"--format={kind}"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, locations_as_before():
        assert export_serving.main(arguments) == expect
    return printed.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder, inputs = tmp_path_factory.mktemp("served"), make_inputs()
    names = ("input_ids", "lengths", "token_type_ids")
    flat = {f"{case}/{name}": x for case, values in inputs.items() for name, x in zip(names, values, strict=True)}
    np.savez(folder / "inputs.npz", **flat)
    params = write_runs(folder)
    blocked = {
        "stablehlo": ("spanbert_jax", "flax", "tensorflow", "torch", "transformers"),
        "saved_model": ("spanbert_jax", "jax", "jaxlib", "flax", "safetensors", "tokenizers", "torch", "transformers"),
    }
    scripts = {
        kind: f"BLOCKED, CALLED, LONGEST = {blocked[kind]}, {CALLED}, {LONGEST}\n{FRESH.replace('KIND', kind)}"
        for kind in KINDS
    }
    printed: dict[tuple[str, str], str] = {}
    fresh = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind in KINDS:
            for model in MODELS:
                printed[kind, model] = export_here(model, f"{kind}-{model}", kind)
            fresh[kind] = start(folder, "-c", scripts[kind])
    finish(fresh)
    outputs = {kind: np.load(folder / f"{kind}.npz") for kind in KINDS}
    computed = {
        model: {
            name: jax.jit(function)
            for name, function in functions(CONFIGS[model], tree, TOKENIZER.vocab_size, len(LABELS)).items()
        }
        for model, tree in params.items()
    }
    return Served(folder, params, printed, inputs, outputs, computed)


def valid_part(output: np.ndarray, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """What an output, of a position or of a row, says of what is not padding."""
    ids, lengths, _ = inputs
    return output[np.arange(ids.shape[1]) < lengths[:, None]] if output.shape[:2] == ids.shape else output


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_a_process_without_this_project_gets_our_values_at_shapes_of_its_own(
    served: Served, kind: str, model: str
) -> None:
    for what, case in itertools.product(CALLED[model], map(str, range(len(SHAPES)))):
        expected = served.ours(model, what, served.inputs[case])
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(served.outputs[kind][f"{model}/{what}/{case}"], expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_the_lines_of_the_readme_tokenise_as_we_do_and_get_our_values(served: Served, kind: str, model: str) -> None:
    outputs = served.outputs[kind]
    inputs = tuple(outputs[f"{model}/readme/{name}"] for name in ("input_ids", "lengths", "token_type_ids"))
    first = "Paris is the [MASK] of France." if model == "pretraining" else "Ada Lovelace lived in London."
    for text, ids, length in zip((first, "Hello!"), *inputs[:2], strict=True):
        before, _, after = text.partition("[MASK]")
        between = [TOKENIZER.mask_id] if after else []
        wanted = [TOKENIZER.cls_id, *TOKENIZER.tokenize(before), *between, *TOKENIZER.tokenize(after), TOKENIZER.sep_id]
        assert ids[:length].tolist() == wanted and not ids[length:].any()
    for what in ("encode", "predict"):
        expected = served.ours(model, what, inputs)
        np.testing.assert_allclose(outputs[f"{model}/readme/{what}"], expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_what_the_padding_is_changes_nothing(served: Served, kind: str, model: str) -> None:
    for what in CALLED[model]:
        one, other = (
            valid_part(served.outputs[kind][f"{model}/{what}/{case}"], served.inputs["1"]) for case in ("1", "padding")
        )
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_rows_longer_than_the_model_are_an_error_not_a_wrong_answer(served: Served, kind: str, model: str) -> None:
    assert re.search("Error refining shapes|shape refinement failed", str(served.outputs[kind][f"{model}/too_long"]))


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_the_tool_says_what_it_wrote_and_how_close_it_came(served: Served, kind: str, model: str) -> None:
    printed, directory = served.printed[kind, model], served.folder / f"{kind}-{model}"
    for name, size in re.findall(r"^  (\S+) +([\d,]+) bytes$", printed, re.MULTILINE):
        assert (directory / name).stat().st_size == int(size.replace(",", ""))
    assert printed.count(" bytes\n") == sum(path.is_file() for path in directory.rglob("*"))
    found = re.search(r"largest difference: hidden states (\S+) .*, logits (\S+) \(", printed)
    assert found and max(map(float, found.groups())) < ROUNDING


@pytest.mark.parametrize("model", MODELS)
def test_the_parameters_are_there_once_and_only_those_that_are_used(served: Served, model: str) -> None:
    used = {group: tree for group, tree in served.params[model].items() if group != "sbo"}
    count = sum(leaf.size for leaf in jax.tree.leaves(used))
    written = load_file(served.folder / f"stablehlo-{model}" / "params.safetensors")
    assert {name.split("/")[0] for name in written} == set(used)
    assert sum(tensor.size for tensor in written.values()) == count
    sizes = {path.name: path.stat().st_size for path in (served.folder / f"saved_model-{model}").rglob("*.*")}
    assert 4 * count <= sizes["variables.data-00000-of-00001"] < 4 * count + 10_000


@pytest.mark.parametrize("name", ["encode", "predict"])
def test_stablehlo_is_for_all_platforms_and_multiplies_in_float32_on_each(served: Served, name: str) -> None:
    exported = export.deserialize(
        bytearray((served.folder / "stablehlo-pretraining" / f"{name}.stablehlo").read_bytes())
    )
    assert exported.platforms == ("cpu", "cuda", "tpu")
    products = [line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(("kind", "model"), EXPORTS)
def test_no_file_names_a_directory_of_the_machine_that_wrote_it(served: Served, kind: str, model: str) -> None:
    for path in (served.folder / f"{kind}-{model}").rglob("*"):
        assert path.is_dir() or not re.search(rb"/\w+/\w+\.py|" + str(ROOT).encode(), path.read_bytes()), path


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_an_artefact_that_computes_something_else_is_not_kept(
    served: Served,
    error: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    read = stablehlo.read_stablehlo

    def read_wrong(directory: Path) -> dict[str, Any]:
        return {name: lambda *inputs, call=call: call(*inputs) + error for name, call in read(directory).items()}

    monkeypatch.setattr(stablehlo, "read_stablehlo", read_wrong)
    export_here(served.folder / "classification", tmp_path / "serving", "stablehlo", expect=1)
    assert re.fullmatch(r"error: encode: .* differs by (1\.\de-03|nan) .*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line_and_nothing_is_written(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_here(tmp_path / "no-run", tmp_path / "serving", "stablehlo", expect=1)
    assert re.fullmatch(rf"error: {tmp_path}/no-run: no such .*\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())

    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "mine.txt").write_text("mine")
    export_here(served.folder / "pretraining", tmp_path / "serving", "stablehlo", expect=1)
    assert re.fullmatch(rf"error: {tmp_path}/serving: exists and is not an empty .*\n", capsys.readouterr().err)
    assert [path.name for path in tmp_path.rglob("*")] == ["serving", "mine.txt"]
