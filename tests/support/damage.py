"""What a broken copy, a full disk or a failing one does to a checkpoint."""

import contextlib
import os
import shutil
from collections.abc import Iterator
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


@contextlib.contextmanager
def flipped(file: Path, place: int, bit: int = 6) -> Iterator[None]:
    """Flips a bit of the byte at `place` while the block runs."""
    data = bytearray(whole := file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)
    try:
        yield
    finally:
        if file.exists():
            file.write_bytes(whole)
