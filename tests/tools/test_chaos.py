"""tools/chaos.py: a run that is killed at chosen moments ends as an undisturbed one, and any difference is told."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from spanbert_jax.errors import UserError
from spanbert_jax.runs.comparison import compare
from tests.support import forked, runs
from tools import chaos
from tools.chaos import Facts, Kill, Moment, Seen, moments_of

FACTS = Facts(60, 1, frozenset({20, 40, 60}), ("vocabulary", "blocks", "compiling", "step", "save", "evaluation"), 10)


def begin(command: list[str], output: Path) -> forked.Forked:
    """A forked process in the place of a new one, which would cost five seconds of imports."""
    process = runs.start(command)
    output.symlink_to(process.output)
    return process


def flags(**fields: object) -> list[str]:
    """The flags of a small run without its --workdir."""
    given = runs.command(Path("unused"), **fields)[3:]
    place = given.index("--workdir")
    return given[:place] + given[place + 2 :]


def test_a_run_that_is_killed_at_three_moments_ends_as_an_undisturbed_one(
    longer: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    """Real processes, which build the blocks anew. Saves every 7 steps cut windows of 5 steps."""
    reference, fields = longer
    rest = flags(
        **{name: value for name, value in fields.items() if name != "data__dir"} | {"train__checkpoint_every": 7}
    )
    given = ["--reference", str(reference), "--work", str(tmp_path), "--moments", "blocks,save 14,step 40"]
    done = runs.here(lambda: chaos.main([*given, "--signal", "mixed", "--seed", "1", "--", *rest], begin))
    rows = [line.split(" | ")[1:] for line in done.stdout.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["blocks", "save 14", "step 40"]
    for _, name, reached, resumed, lost, status in rows:
        assert status.strip(" |") == {"SIGKILL": "-9", "SIGTERM": "75"}[name]
        assert int(lost) == (0 if reached == "-" else int(reached) - int(resumed))
    killed = tmp_path / "killed"
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, *range(5, 61, 5), 60]  # the last one is the evaluation
    ours, theirs = runs.params(killed, 60), runs.params(reference, 60)
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert done.stdout.count("\nequal: ") == 3 and "3 kills, 3 restarts, " in done.stdout


def test_every_difference_between_two_runs_is_told(finished: tuple[Path, str], tmp_path: Path) -> None:
    reference, _ = finished
    assert [check.same for check in compare(reference, reference)] == [True] * 3

    def found(name: str) -> list[str]:
        return [check.what for check in compare(reference, tmp_path / name) if not check.same]

    for name in ("arrays", "step", "lines", "twice"):
        shutil.copytree(reference, tmp_path / name)
    shutil.rmtree(tmp_path / "arrays" / "checkpoints" / "12")
    (tmp_path / "arrays" / "checkpoints" / "8").rename(tmp_path / "arrays" / "checkpoints" / "12")
    shutil.rmtree(tmp_path / "step" / "checkpoints" / "12")
    assert found("arrays") == found("step") == ["final parameters and optimizer state"]
    file = tmp_path / "lines" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["train/mlm_loss"] *= 1 + 1e-15
    lines[2]["train/seconds_per_step"] *= 2
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert found("lines") == ["metrics.jsonl"]
    with (tmp_path / "twice" / "metrics.jsonl").open("a") as twice:
        twice.write(json.dumps(lines[-1]) + "\n")
    assert found("twice") == ["metrics.jsonl", "TensorBoard"]


def test_moments_are_in_the_order_of_a_run_and_drawn_ones_are_of_every_kind() -> None:
    given = moments_of("save 30, blocks,step 7", 0, FACTS, random.Random(0))
    assert given == [Moment("blocks", 0), Moment("step", 7), Moment("save", 30)]
    drawn = moments_of("step 7", 19, FACTS, random.Random(0))
    assert drawn == moments_of("step 7", 19, FACTS, random.Random(0))
    assert {moment.kind for moment in drawn} == set(FACTS.kinds) and len(drawn) == 19 and Moment("step", 7) in drawn
    assert [moment.step for moment in drawn] == sorted(moment.step for moment in drawn) and drawn[-1].step < 60
    for wrong in ("later", "blocks 3", "step x"):
        with pytest.raises(UserError, match=f"--moments '{wrong}': expected one of vocabulary"):
            moments_of(wrong, 0, FACTS, random.Random(0))


def test_steps_are_lost_only_by_a_run_that_trained_and_was_started_again() -> None:
    assert Kill(Moment("step", 7), "KILL", reached=9, resumed=6).lost == 3
    assert Kill(Moment("blocks", 0), "KILL").lost == Kill(Moment("save", 9), "TERM", reached=9, resumed=9).lost == 0


def test_flags_and_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    for given, words in ((["--workdir=x"], "leave the flag out"), ([], "killed exists; move it away")):
        done = runs.here(lambda given=given: chaos.main(["--work", str(tmp_path), "--", *given]), expect=1)
        assert done.stderr.startswith("error: ") and words in done.stderr


def test_a_start_trains_once_it_has_passed_the_trials_that_are_finished(tmp_path: Path) -> None:
    output, seen = tmp_path / "log", Seen(tmp_path, tmp_path / "log", FACTS._replace(trials=2))
    for printed, began in (
        ("Training ...\n", None),
        ("Step 60 of 60, 1 x cpu; compiling\nStep 60, held out: accuracy 1.00\n", None),
        ("Step 60 of 60, 1 x cpu; compiling\nStep 22 of 60, 1 x cpu; compiling\n", 82),
        ("Step 43 of 60, 1 x cpu; compiling\nStep 50, held out: accuracy 1.00\n", 43),
        ("Step 60 of 60, 1 x cpu; compiling\nStep 60 of 60, 1 x cpu; compiling\n", 120),
        ("Step 1,043 of 2,000, 1 x cpu; compiling\n", 1043),
    ):
        output.write_text(printed)
        assert seen.began() == began, printed
