"""What a broken copy or a full disk does to a checkpoint."""

import os
import shutil
from pathlib import Path

# kind -> (a pattern of files in the checkpoint, whether the largest of them is cut in half; otherwise it is missing)
DAMAGE = {
    "a cut array": ("state/ocdbt.process_*/d/*", True),
    "a cut index": ("state/manifest.ocdbt", True),
    "cut metadata": ("metadata/metadata", True),
    "no metadata": ("metadata/metadata", False),
    "no state": ("state", False),
}


def damage(checkpoint: Path, files: str, cut: bool) -> None:
    """Cuts or deletes the largest file or folder of the checkpoint that the pattern names."""
    largest = max(checkpoint.glob(files), key=lambda path: path.stat().st_size)
    if cut:
        os.truncate(largest, largest.stat().st_size // 2)
    elif largest.is_dir():
        shutil.rmtree(largest)
    else:
        largest.unlink()
