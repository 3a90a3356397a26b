"""A fine-tuning run as a user sees it: trained, stopped and gone on with, evaluated, and used to predict."""

import csv
import json
import random
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from jax import monitoring

from configs import classify
from spanbert_jax.batches.lengths import BucketedOrder
from spanbert_jax.runs.finetuning import report
from tests.support import runs
from tools import evaluate, sweep

WORDS = [f"w{i}" for i in range(20)]
SMALL = {
    "model.layers": 1,
    "model.embed": 32,
    "model.heads": 2,
    "model.mlp": 64,
    "model.max_length": 32,
    "model.init_std": 0.1,
    "data.block_length": 32,
    "tokenizer.kind": "wordpiece",
    "optimizer.learning_rate": 3e-3,
    "train.batch_size": 16,
    "train.log_every": 5,
    "train.checkpoint_every": 5,
    "finetuning.epochs": 3,
    "finetuning.eval_every_epochs": 0.5,
    "data.lengths": 1,
    "corpus.workers": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv and dev.csv, whose label is whether w0 is among the words, and vocab.txt."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    for name, count in (("train", 320), ("dev", 60)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for _ in range(count):
                words = rng.choices(WORDS[1:], k=rng.randint(2, 24))
                if rng.random() < 0.5:
                    words[rng.randrange(len(words))] = "w0"
                writer.writerow([" ".join(words), "yes" if "w0" in words else "no"])
    return folder


def values(data: Path, fields: dict[str, object]) -> dict[str, object]:
    """The fields of a small run's configuration on the data; keywords (dots as __) override."""
    files = {"data.train": "train.csv", "data.dev": "dev.csv", "tokenizer.vocab_file": "vocab.txt"}
    given = {name: data / file for name, file in files.items()}
    return SMALL | given | {name.replace("__", "."): value for name, value in fields.items()}


def command(data: Path, workdir: Path, **fields: object) -> list[str]:
    """The command line of a small run."""
    flags = [f"--config.{name}={value}" for name, value in values(data, fields).items()]
    config = ("--config", "configs/classify.py", "--workdir", str(workdir))
    return [sys.executable, "-m", "spanbert_jax.main", *config, *flags]


def call(data: Path, workdir: Path, expect: int = 0, **fields: object) -> runs.Called:
    """The run of `command`, in this process."""
    arguments = command(data, workdir, **fields)[3:]
    return runs.call_config(classify.get_config(), workdir, arguments, expect, **values(data, fields))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run to the end, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "reviews"
    return workdir, call(data, workdir).stdout


def test_a_run_learns_keeps_its_best_and_says_where_everything_is(finished: tuple[Path, str]) -> None:
    workdir, printed = finished
    results = json.loads((workdir / "results.json").read_text())
    (trial,) = results["trials"]
    assert trial["accuracy"] > 80 > results["baseline"]["accuracy"]  # about half of the texts have the word
    accuracies = runs.metrics(workdir, "held_out/accuracy")
    assert len(accuracies) == 6 and trial["accuracy"] == max(accuracies.values())
    (best,) = (workdir / "best").iterdir()
    assert accuracies[int(best.name)] == trial["accuracy"]
    assert f"Best checkpoint: {best}" in printed and "320 training examples" in printed
    assert f"{trial['accuracy']:.2f}" in printed.split("metric")[1]


def test_the_evaluator_prints_the_numbers_of_the_run(finished: tuple[Path, str], data: Path) -> None:
    workdir, _ = finished
    printed = runs.tool("evaluate", "--checkpoint", workdir, "--data", data / "dev.csv").stdout
    (trial,) = json.loads((workdir / "results.json").read_text())["trials"]
    numbers = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()[1:]}
    assert numbers == {name: round(value, 4) for name, value in trial.items()}


def test_a_step_that_is_run_again_has_the_loss_of_the_run_and_the_texts_of_its_rows(
    finished: tuple[Path, str], data: Path
) -> None:
    workdir, _ = finished
    printed = runs.tool("replay", "--workdir", workdir, "--step", 0, "--rows", 3).stdout
    assert f": loss {runs.metrics(workdir, 'train/loss')[1]:.3f}\n" in printed
    assert "Every row's loss and gradient is finite" in printed
    with (data / "train.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    shown = re.findall(r"^row (\d+): (.+)$", printed, re.MULTILINE)
    assert len(shown) == 3 and all(text == texts[int(number)] for number, text in shown)


def test_a_file_of_predictions_is_scored_and_one_for_other_data_refused(
    finished: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    workdir, _ = finished
    arguments = ("--checkpoint", workdir, "--data", data / "dev.csv", "--predictions")
    (trial,) = json.loads((workdir / "results.json").read_text())["trials"]
    assert evaluate.evaluate(workdir, str(data / "dev.csv"), workdir / "predictions.jsonl")[2] == trial
    lines = (workdir / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[1:]) + "\n")
    done = runs.tool("evaluate", *arguments, tmp_path / "fewer.jsonl", expect=1)
    assert done.stderr.startswith("error: ") and "lacks 1 of the 60 ids" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    for wrong in ({}, {"label": None}, {"label": ["yes"]}, {"label": {}}):
        first = json.dumps({"id": json.loads(lines[0])["id"], **wrong})
        (tmp_path / "wrong.jsonl").write_text("\n".join([first, *lines[1:]]) + "\n")
        done = runs.tool("evaluate", *arguments, tmp_path / "wrong.jsonl", expect=1)
        assert done.stderr.startswith(f"error: {tmp_path}/wrong.jsonl: fields are missing or wrong for sequence_")
        assert len(done.stderr.splitlines()) == 1


def test_no_shape_is_compiled_after_the_first_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, seen = [], {}
    monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    batch = BucketedOrder.batch

    def counted(self: BucketedOrder, step: int) -> tuple[np.ndarray, int]:
        indices, length = batch(self, step)
        seen[step] = length, sum(name.endswith("backend_compile_duration") for name in compiled)
        return indices, length

    monkeypatch.setattr(BucketedOrder, "batch", counted)
    call(data, tmp_path / "run", data__lengths=2, finetuning__epochs=2)
    assert len(seen) == 40 and len({length for length, _ in seen.values()}) == 2
    assert seen[19][1] > 0 and seen[25][1] == seen[39][1]  # 20 steps an epoch, and batches are fetched 3 steps ahead


def test_the_predictor_takes_files_and_plain_text(finished: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    workdir, _ = finished
    kept = [json.loads(line) for line in (workdir / "predictions.jsonl").read_text().splitlines()]
    rows = list(csv.DictReader((data / "dev.csv").read_text().splitlines()))
    (tmp_path / "new.csv").write_text("\n".join(["text", *(row["text"] for row in rows)]) + "\n")
    output = tmp_path / "new" / "predictions.jsonl"
    runs.tool("predict", "--checkpoint", workdir, "--input", tmp_path / "new.csv", "--output", output)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [p["label"] for p in found] == [p["label"] for p in kept]
    np.testing.assert_allclose([p["score"] for p in found], [p["score"] for p in kept], atol=1e-5)
    text = "\n".join(row["text"] for row in rows[:5]) + "\n"
    lines = runs.tool("predict", "--checkpoint", workdir, stdin=text.encode()).stdout.splitlines()
    assert [json.loads(line)["label"] for line in lines] == [p["label"] for p in kept[:5]]


def test_an_export_has_the_labels_and_a_new_run_starts_from_it(
    finished: tuple[Path, str], data: Path, tmp_path: Path, openings: list[str]
) -> None:
    workdir, _ = finished
    runs.tool("convert_to_pytorch", "--checkpoint", workdir, "--output", tmp_path / "export", "--verify")
    fields = json.loads((tmp_path / "export" / "config.json").read_text())
    assert fields["architectures"] == ["BertForSequenceClassification"]
    assert fields["id2label"] == {"0": "no", "1": "yes"}
    more = {"init_from": tmp_path / "export", "tokenizer__vocab_file": "", "finetuning__epochs": 0.1}
    printed = call(data, tmp_path / "more", **more).stdout
    assert "Taken: embeddings, encoder, pooler, classifier; freshly initialised: nothing" in printed
    assert openings == ["opened", "released"]
    (trial,) = json.loads((tmp_path / "more" / "results.json").read_text())["trials"]
    assert trial["accuracy"] > 80


def test_a_run_that_is_stopped_goes_on_to_the_same_parameters(
    finished: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    workdir, _ = finished
    process = runs.start(command(data, tmp_path / "stopped"))
    runs.wait_for(tmp_path / "stopped" / "metrics.jsonl", process, '"step": 20')
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "stopped" / "results.json").exists()
    call(data, tmp_path / "stopped")
    ours, theirs = (runs.params(place, 60) for place in (tmp_path / "stopped", workdir))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    results = [(place / "results.json").read_text() for place in (tmp_path / "stopped", workdir)]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def trials(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two trials of an epoch, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "trials"
    return workdir, call(data, workdir, trials=2, finetuning__epochs=1).stdout


def test_two_processes_give_the_numbers_of_one(trials: tuple[Path, str], data: Path, tmp_path: Path) -> None:
    processes = runs.start_two(command(data, tmp_path / "two", finetuning__epochs=1))
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    for name, steps, atol in (("train/loss", 5, 1e-3), ("held_out/accuracy", 2, 2)):  # of 60 texts, one is 1.7%
        one, two = (runs.metrics(place, name) for place in (trials[0] / "trial_0", tmp_path / "two"))
        assert one.keys() == two.keys() and len(one) == steps
        np.testing.assert_allclose([two[step] for step in one], list(one.values()), rtol=0, atol=atol)
    assert "metric" in printed[0] and "metric" not in printed[1]
    assert (tmp_path / "two" / "best").is_dir()


def test_trials_have_seeds_of_their_own_a_mean_and_a_deviation(trials: tuple[Path, str]) -> None:
    workdir, printed = trials
    results = json.loads((workdir / "results.json").read_text())["trials"]
    assert len(results) == 2 and all((workdir / f"trial_{i}" / "best").is_dir() for i in (0, 1))
    (row,) = (line for line in printed.splitlines() if line.split()[:1] == ["accuracy"])
    values = [trial["accuracy"] for trial in results]
    expected = [*values, np.mean(values), np.std(values, ddof=1)]
    np.testing.assert_allclose([float(cell) for cell in row.split()[1:5]], expected, atol=0.006)
    best = max((0, 1), key=lambda trial: values[trial])
    assert f"--checkpoint {workdir / f'trial_{best}'} " in printed
    losses = [runs.metrics(workdir / f"trial_{i}", "train/loss")[1] for i in (0, 1)]
    assert losses[0] != losses[1]


def test_the_kept_metric_comes_first_and_no_name_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"Component-Whole(e2,e1)/{of}" for of in ("precision", "recall")] + ["[/b]/f1"]
    results = [dict(zip((*names, "macro_f1"), (60.0 + seed, 50.0, 55.0, 57.5), strict=True)) for seed in range(9)]
    report("macro_f1", results, {}, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (header,) = (i for i, line in enumerate(lines) if line.split()[:1] == ["metric"])
    assert [line.split()[0] for line in lines[header + 1 : header + 5]] == ["macro_f1", *names]
    assert lines[header + 2].split()[1:10] == [f"{60 + seed}.00" for seed in range(9)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__dev": "missing.csv"}, "missing.csv does not exist"),
        ({"classification__label": "stars"}, "stars"),
        ({"tokenizer__vocab_file": ""}, "config.tokenizer.vocab_file"),
        ({"data__train": ""}, "config.data.train is empty"),
    ],
)
def test_a_mistake_ends_in_one_line(data: Path, tmp_path: Path, fields: dict[str, object], message: str) -> None:
    done = call(data, tmp_path / "x", **fields, expect=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_start_that_failed_leaves_no_vocabulary_for_the_next(data: Path, tmp_path: Path) -> None:
    call(data, tmp_path / "x", data__dev="missing.csv", expect=1)
    (tmp_path / "vocab.txt").write_text((data / "vocab.txt").read_text() + "more\n")
    more = {"tokenizer__vocab_file": tmp_path / "vocab.txt", "finetuning__epochs": 0.1}
    call(data, tmp_path / "x", **more)
    assert (tmp_path / "x" / "tokenizer" / "vocab.txt").read_text().endswith("more\n")


def test_a_run_refuses_another_vocabulary_than_that_which_it_began_with(
    finished: tuple[Path, str], data: Path, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text((data / "vocab.txt").read_text() + "more\n")
    for file, expect in ((data / "vocab.txt", 0), (tmp_path / "vocab.txt", 1), (tmp_path / "gone.txt", 0)):
        done = call(data, finished[0], tokenizer__vocab_file=file, expect=expect)
        assert ("holds another vocabulary than" in done.stderr) == bool(expect)


def test_a_trial_whose_metric_is_no_number_is_not_recommended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report("score", [{"score": value} for value in (float("nan"), 88.0, 91.0)], {}, tmp_path)
    assert f"--checkpoint {tmp_path}/trial_2 " in capsys.readouterr().out


def test_the_predictor_names_what_it_cannot_read_or_write(finished: tuple[Path, str], tmp_path: Path) -> None:
    workdir, _ = finished
    done = runs.tool("predict", "--checkpoint", workdir, "--output", tmp_path, expect=1, stdin=b"w1\n")
    assert done.stderr.startswith(f"error: {tmp_path} is a directory")
    done = runs.tool("predict", "--checkpoint", workdir, expect=1, stdin=b"\xff\xfe\n")
    assert "UTF-8" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_label_that_only_dev_has_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("text,label\nw1 w2,perhaps\n")
    done = call(data, tmp_path / "x", data__dev=tmp_path / "dev.csv", expect=1)
    assert "the first is 0 with 'perhaps'" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_sweep_goes_on_and_ends_in_a_table(
    finished: tuple[Path, str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str]) -> int | None:
        process = runs.start(command)
        process.communicate()
        return process.returncode

    monkeypatch.setattr(sweep, "run_to_its_end", run)
    shutil.copytree(finished[0], tmp_path / "sweep" / "rate_3e-3-batch_16-seed_1")  # its first point
    rest = command(data, tmp_path, finetuning__epochs=0.5)[7:]
    grid = ["--learning-rates", "3e-3,1e-3", "--batch-sizes", "16", "--seeds", "1"]
    where = ["--config", "configs/classify.py", "--workdir", tmp_path / "sweep"]
    done = runs.tool("sweep", *where, *grid, "--", *rest)
    assert done.stdout.count("] ") == 1 and "[2 of 2]" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith(("1e-3", "3e-3"))]
    for row in rows:
        place = tmp_path / "sweep" / f"rate_{row[0]}-batch_16-seed_1" / "results.json"
        assert float(row[2]) == round(json.loads(place.read_text())["trials"][0]["accuracy"], 2)
    assert len(rows) == 2


def test_a_run_whose_names_for_spans_have_changed_does_not_go_on_with_other_rows(data: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("w0\nw1\n")
    fields = {"corpus__spans": f"gazetteer:{tmp_path}/names.txt", "model__span_embedding": True}
    fields |= {"finetuning__epochs": 0.1, "finetuning__eval_every_epochs": 0.1}
    call(data, tmp_path / "run", **fields)
    call(data, tmp_path / "run", **fields)
    (tmp_path / "names.txt").write_text("w0\nw2\n")
    said = call(data, tmp_path / "run", expect=1, **fields).stderr
    assert "these checkpoints were trained on other data" in said and said.count("\n") == 1
