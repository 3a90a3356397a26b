"""A real run whose workdir, data and checkpoints are in a bucket is the run on this disk, and goes on from it.

The bucket is a local folder: behind epath's interface for this program, behind Google's JSON interface for Orbax.
"""

import re
import subprocess
import sys
from pathlib import Path

from tests.support import fake_bucket, runs
from tests.support.damage import DAMAGE, damage


def run_in_bucket(
    folder: Path, environment: dict[str, str], **fields: object
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Runs with --workdir gs://bucket/run; gives the folder that it is."""
    of_module = runs.command(Path("WORKDIR"), data__cache_dir=folder / "cache", **fields)[2:]
    arguments = [argument.replace("WORKDIR", "gs://bucket/run") for argument in of_module]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.fake_bucket", str(folder / "buckets"), *arguments],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        env={**runs.environment(), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "buckets" / "bucket" / "run", done


def test_a_run_in_a_bucket_is_the_run_on_this_disk_and_goes_on_from_its_newest_sound_checkpoint(
    tmp_path: Path,
) -> None:
    runs.write_corpus(tmp_path / "topics.txt", 60)
    fields = {"corpus__files": tmp_path / "topics.txt", "data__lengths": 1}
    runs.call(tmp_path / "here", **fields)
    names = ("train/mlm_loss", "train/sbo_loss", "held_out/mlm_loss")
    expected = {name: runs.metrics(tmp_path / "here", name) for name in names}
    with fake_bucket.served(tmp_path / "buckets") as environment:
        workdir, done = run_in_bucket(tmp_path, environment, **fields)
        assert {name: runs.metrics(workdir, name) for name in names} == expected
        assert "Checkpoint:  gs://bucket/run/checkpoints/12" in done.stdout
        assert {path.name for path in workdir.iterdir()} == {path.name for path in (tmp_path / "here").iterdir()}
        (workdir / "checkpoints" / "12" / "commit_success.txt").unlink()  # as if it had been killed while it saved
        damage(workdir / "checkpoints" / "8", *DAMAGE["a cut array"])
        damaged = {path.name: path.stat().st_size for path in (workdir / "checkpoints" / "8").rglob("*")}
        _, again = run_in_bucket(tmp_path, environment, **fields)
    there = "gs://bucket/run/checkpoints/8"
    assert re.search(
        f"^warning: {there} is damaged .*: kept as 8.damaged; going on from 4$", again.stderr, re.MULTILINE
    )
    assert "Step 4 of 12" in again.stdout and "Building blocks" not in again.stdout
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8", "12", "8.damaged"}
    assert {path.name: path.stat().st_size for path in (workdir / "checkpoints" / "8.damaged").rglob("*")} == damaged
    assert runs.metrics(workdir, "held_out/mlm_loss") == expected["held_out/mlm_loss"]
    assert set(runs.metrics(workdir, "train/mlm_loss")) == {1, 4, 5, 6, 8, 12}  # 5: the first step after the start
