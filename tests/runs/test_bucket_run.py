"""A real run whose workdir, data and checkpoints are in a bucket is the run on this disk, and goes on from it.

The bucket is a local folder: behind epath's interface for this program, behind Google's JSON interface for Orbax.
"""

import json
import re
from pathlib import Path

from tests.support import fake_bucket, forked, runs
from tests.support.damage import DAMAGE


def size(folder: Path) -> int:
    """The bytes of all files under the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_in_a_bucket_is_the_run_on_this_disk_and_goes_on_from_its_newest_sound_checkpoint(
    finished: tuple[Path, str], topics: Path, tmp_path: Path
) -> None:
    here, workdir = finished[0], tmp_path / "buckets" / "bucket" / "run"
    fields = {"corpus.files": str(topics), "data.cache_dir": str(tmp_path / "cache")}
    checkpoints = workdir / "checkpoints"
    # Checkpoint 12 is as a run leaves it that is killed while it saves.
    broken = [(str(checkpoints / "12"), "commit_success.txt", False), (str(checkpoints / "8"), *DAMAGE["a cut array"])]
    with fake_bucket.served(tmp_path / "buckets") as variables:
        twice = [["gs://bucket/run", fields], ["gs://bucket/run", fields, {"damage": broken}]]
        plan = json.dumps({"count": 1, "devices": 1, "runs": twice})
        process = forked.start(
            "tests.support.fake_bucket", str(tmp_path / "buckets"), "tests.support.many_runs", plan, "0", **variables
        )
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    begun, resumed, _ = printed.split("Checkpoint:  gs://bucket/run/checkpoints/12")
    assert "Building blocks" in begun and "Building blocks" not in resumed
    kept = "kept as 8.damaged; going on from 4$"
    assert re.search(f"^warning: gs://bucket/run/checkpoints/8 is damaged .*: {kept}", resumed, re.MULTILINE)
    assert "Step 4 of 12" in resumed
    assert {path.name for path in workdir.iterdir()} == {path.name for path in here.iterdir()}
    assert {path.name for path in checkpoints.iterdir()} == {"4", "8", "12", "8.damaged"}
    whole, cut = (size(checkpoints / step) for step in ("8", "8.damaged"))
    assert whole / 2 < cut < whole  # kept as it was found: with half of its largest file
    assert set(runs.metrics(workdir, "train/mlm_loss")) == {1, 4, 6, 8, 12}
    compared = {"train/mlm_loss": (1, 4, 8, 12), "train/sbo_loss": (1, 4, 8, 12), "held_out/mlm_loss": (6, 12)}
    for name, steps in compared.items():
        ours, theirs = runs.metrics(workdir, name), runs.metrics(here, name)
        assert {step: ours[step] for step in steps} == {step: theirs[step] for step in steps}, name
