"""The command line, as a user runs it: from raw text to a checkpoint, interrupted and gone on with, and misused."""

import json
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import tiny
from spanbert_jax.runs.pretraining import report
from spanbert_jax.text import docstrings
from spanbert_jax.training import loop
from tests.support import runs
from tests.support.synthetic import small_config


def test_a_run_leaves_everything_in_its_workdir(finished: tuple[Path, str]) -> None:
    workdir, printed = finished
    assert {path.name for path in workdir.iterdir()} == {
        "config.json",
        "run.lock",
        "tokenizer",
        "data",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert json.loads((workdir / "config.json").read_text())["tokenizer"]["vocab_size"] == 600
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("held_out/sbo_accuracy")] == [6, 12]
    assert {int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()} == {4, 8, 12}
    assert f"Checkpoint:  {workdir}/checkpoints/12" in printed
    of_mask, whole = (runs.metrics(workdir, f"held_out/mlm_accuracy{kind}")[12] for kind in ("_mask", ""))
    (line,) = [line for line in printed.splitlines() if line.startswith("Held-out MLM")]
    assert of_mask != whole and line.endswith(f"accuracy {of_mask:.1%}") and "on [MASK] pieces" in line
    assert "always the commonest piece" in printed and "from the visible neighbours" in printed


def test_the_configuration_of_make_pretrain_runs_from_docstrings_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortened: few modules, a small vocabulary, three steps."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-p]*.py"))
    monkeypatch.setattr(docstrings, "module_paths", lambda: paths)
    monkeypatch.setattr(docstrings, "found_texts", [])
    config = tiny.get_config()
    config.train.update(steps=3, log_every=1, eval_every=3, checkpoint_every=3, batch_size=8, eval_blocks=8)
    config.optimizer.warmup_steps = 1
    short = {"tokenizer.vocab_size": 1000, "corpus.held_out": 0.1, "corpus.workers": 1}
    done = runs.call_config(config, tmp_path / "run", [], **short)
    assert f"Checkpoint:  {tmp_path}/run/checkpoints/3" in done.stdout and "of [MASK]" in done.stdout
    assert set(runs.metrics(tmp_path / "run", "train/mlm_loss")) == {1, 2, 3}


def test_the_metrics_file_holds_each_step_once_with_every_metric(finished: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if "train/mlm_loss" in row]
    assert [row["step"] for row in train] == [1, 4, 6, 8, 12]
    names = "mlm_loss mlm_accuracy sbo_loss sbo_accuracy learning_rate gradient_norm padding"
    speeds = "pieces_per_second sequences_per_second input_wait"
    assert all(f"train/{name}" in row for row in train for name in names.split())
    assert all(f"train/{name}" in row for row in train[1:] for name in speeds.split())
    assert [row["step"] for row in rows if "held_out/mlm_loss" in row] == [6, 12]
    assert abs(train[0]["train/mlm_loss"] - np.log(600)) < 0.5


def test_the_command_that_a_run_ends_with_works_as_it_is_printed(finished: tuple[Path, str]) -> None:
    (line,) = [line for line in finished[1].splitlines() if "show_masking" in line]
    python, tool, *arguments = shlex.split(line.split(":", 1)[1])
    assert (runs.ROOT / python).samefile(sys.executable) and (runs.ROOT / tool).is_file()
    process = runs.start([python, "-m", tool.removesuffix(".py").replace("/", "."), *arguments, "--rows", "1"])
    printed, _ = process.communicate()
    assert process.returncode == 0 and "Block 1:" in printed, printed


def test_the_commands_that_a_run_ends_with_are_quoted(tmp_path: Path) -> None:
    workdir = tmp_path / "my run's"
    held_out = {f"held_out/mlm_{name}": 0.5 for name in ("loss", "accuracy", "commonest")}
    result = loop.Result(7, True, 7, held_out)
    printed = report(small_config(train={"sbo_weight": 0.0}), epath.Path(workdir), "--workdir x", result)
    assert "Held-out MLM: loss 0.500, accuracy 50.0%\n  without a model: always the commonest piece: 50.0%" in printed
    for tool in ("tensorboard.main", "convert_to_pytorch.py"):
        (line,) = [line for line in printed.splitlines() if tool in line]
        assert str(workdir) in shlex.split(line.split(":", 1)[1])


def test_a_second_call_finds_everything_and_says_the_same_even_after_half_a_line_of_metrics(
    finished: tuple[Path, str], topics: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    path = workdir / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 12, "train/ml')
    again = runs.call(workdir, corpus__files=topics).stdout
    assert path.read_text() == whole
    printed = finished[1].replace(str(finished[0]), str(workdir))
    assert "Building blocks" in printed and "Building blocks" not in again
    assert "vocabulary" in printed and "vocabulary" not in again
    assert printed[printed.index("Checkpoint:") :] == again[again.index("Checkpoint:") :]


def test_a_workdir_of_another_configuration_is_refused_by_the_fields_that_differ(
    finished: tuple[Path, str], topics: Path
) -> None:
    done = runs.call(finished[0], 1, corpus__files=topics, model__layers=3, train__seed=2, train__log_every=7)
    assert "config.model.layers is 2 there and 3 now; config.train.seed is 1 there and 2 now;" in done.stderr
    assert "log_every" not in done.stderr and "Traceback" not in done.stderr
    assert json.loads((finished[0] / "config.json").read_text())["model"]["layers"] == 2


def test_blocks_of_another_tokenizer_are_refused(finished: tuple[Path, str], topics: Path, tmp_path: Path) -> None:
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]), encoding="utf-8")
    done = runs.call(
        tmp_path / "run",
        1,
        corpus__files=topics,
        data__dir=finished[0] / "data",
        tokenizer__kind="wordpiece",
        tokenizer__vocab_file=vocab,
    )
    assert f"holds another vocabulary than {vocab}" in done.stderr and "Traceback" not in done.stderr


def test_a_checkpoint_of_other_data_is_refused_by_its_fingerprint(
    finished: tuple[Path, str], topics: Path, tmp_path: Path
) -> None:
    """The same file name with another text in it, and blocks built anew, with the same vocabulary."""
    corpus, workdir = shutil.copy(topics, tmp_path), shutil.copytree(finished[0], tmp_path / "run")
    vocabulary, claimed = finished[0] / "tokenizer" / "spiece.model", json.loads((workdir / "config.json").read_text())
    claimed["corpus"]["files"], claimed["tokenizer"]["vocab_file"] = str(corpus), str(vocabulary)
    (workdir / "config.json").write_text(json.dumps(claimed))
    with Path(corpus).open("a") as file:
        file.write("\n\nOne more document.\n")
    shutil.rmtree(workdir / "data")
    done = runs.call(workdir, 1, corpus__files=corpus, tokenizer__vocab_file=vocabulary)
    assert (
        "these checkpoints were trained on other data (data_fingerprint" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus__files": "missing/*.txt"}, "missing/*.txt"),
        ({"corpus__files": "{tmp}/empty.txt"}, "empty.txt"),
        ({"corpus__files": "{tmp}/binary.txt"}, "binary.txt"),
        ({"corpus__files": "{tmp}/latin1.txt"}, "latin1.txt"),
        ({"corpus__files": "{tmp}/one.txt", "tokenizer__vocab_size": 335}, "hold out"),
        ({"corpus__files": "{tmp}/short.txt", "tokenizer__vocab_size": 20_000}, "vocab_size"),
        ({"train__batch_size": 250, "mesh__data": 1, "train__accumulation": 4}, "use 248 or 252"),
        ({"data__block_length": 128}, "over the model's longest row of 64 pieces"),
        ({"masking__scheme": "spans"}, "must be one of 'span', 'whole_word', 'subword'"),
        ({"mesh__data": 3}, "does not fit 1 devices"),
    ],
)
def test_a_user_s_mistake_is_one_message_and_leaves_nothing(fields: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"some text\n\0\1\2\n")
    (tmp_path / "latin1.txt").write_bytes("caf\xe9 au lait\n".encode("latin-1"))
    (tmp_path / "one.txt").write_text("Only one document is here, and none can be held out of it.\n")
    runs.write_corpus(tmp_path / "short.txt", topics=20)
    fields = {name: value.format(tmp=tmp_path) if isinstance(value, str) else value for name, value in fields.items()}
    if "mesh__data" in fields or "corpus__files" not in fields:
        fields.setdefault("corpus__files", str(tmp_path / "short.txt"))
    done = runs.call(tmp_path / "run", 1, **fields)
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "run").glob("**/*.tmp")) and not list((tmp_path / "run").glob("**/*.building"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "config.json").exists()  # the mended command may take the same workdir


def test_a_misspelt_field_is_answered_with_the_right_one(tmp_path: Path) -> None:
    """In a process of its own: the flags' parser says it."""
    done = runs.run(tmp_path / "run", 1, model__layer=3)
    assert 'Did you mean "layers"' in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_directory_without_permission_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    done = runs.call(tmp_path / "file" / "run", 1)
    assert "cannot write there" in done.stderr and "choose another directory with --workdir" in done.stderr
    runs.write_corpus(tmp_path / "topics.txt", topics=20)
    done = runs.call(tmp_path / "run", 1, corpus__files=tmp_path / "topics.txt", data__dir=tmp_path / "file" / "data")
    assert "choose another directory with --config.data.dir" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_of_the_user_s_own_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "data" / "tokenizer").mkdir(parents=True)
    (tmp_path / "data" / "tokenizer" / "thesis.tex").write_text("years of work")
    runs.write_corpus(tmp_path / "topics.txt", topics=20)
    done = runs.call(tmp_path / "run", 1, corpus__files=tmp_path / "topics.txt", data__dir=tmp_path / "data")
    assert "holds no tokenizer of this program" in done.stderr
    assert (tmp_path / "data" / "tokenizer" / "thesis.tex").read_text() == "years of work"
