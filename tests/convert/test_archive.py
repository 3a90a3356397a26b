"""A model's files come out of an archive byte for byte, and nothing that an archive holds acts on anything else."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from spanbert_jax.convert import archive
from spanbert_jax.errors import UserError

Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, contents: bytes = b"contents") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(contents)
    return info, contents


def special(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def write(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for info, contents in members:
            tar.addfile(info, io.BytesIO(contents))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory that an archive is taken out into."""
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside"


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, folder: Path, *parts: str) -> str:
    with pytest.raises(UserError) as error:
        archive.take_out(path, folder)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 600, message
    assert all(part in message for part in parts), message
    return message


@pytest.mark.parametrize("at", ["", "./", "spanbert/", "./a/b/"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_the_files_of_a_model_come_out_and_no_others(at: str, suffix: str, tmp_path: Path, folder: Path) -> None:
    long = "model-00001-of-00002" + "x" * 90 + ".safetensors"  # its name needs a PAX header
    names = ("config.json", "model.safetensors.index.json", long, "vocab.txt", "spiece.model", "pytorch_model.bin")
    wanted = {name: os.urandom(700 + i) for i, name in enumerate(names)}
    others = [plain(f"{at}{name}") for name in ("._model.safetensors", "setup.py", "config.json.bak", "x.safetensors~")]
    members = [plain(at + name, contents) for name, contents in wanted.items()]
    directory = [special(at, tarfile.DIRTYPE)] if at else []
    place = archive.take_out(write(tmp_path / f"model.{suffix}", *directory, *members, *others), folder)
    assert files_in(place) == files_in(folder) == wanted
    assert {path.stat().st_mode & 0o111 for path in place.iterdir()} == {0}


def test_of_two_folders_with_weights_the_first_by_name_counts(tmp_path: Path, folder: Path) -> None:
    members = [plain(f"{name}/model.pt", name.encode()) for name in ("b", "a", "c")] + [plain("A/config.json")]
    place = archive.take_out(write(tmp_path / "model.tar.gz", *members), folder)
    assert files_in(place) == {"model.pt": b"a"}


@pytest.mark.parametrize(
    ("member", "part"),
    [
        (plain("../config.json"), "'../config.json' is outside of the archive's folder"),
        (plain("m/../../vocab.txt"), "outside"),
        (plain("/tmp/vocab.txt"), "'/tmp/vocab.txt' is outside"),
        (special("m/vocab.txt", tarfile.SYMTYPE, "/etc/passwd"), "'m/vocab.txt' is a symbolic link"),
        (special("elsewhere", tarfile.SYMTYPE, "m"), "'elsewhere' is a symbolic link"),
        (special("m/config.json", tarfile.LNKTYPE, "m/model.pt"), "a hard link"),
        (special("m/vocab.txt", tarfile.CHRTYPE), "a device"),
        (special("disk", tarfile.BLKTYPE), "a device"),
        (special("m/vocab.txt", tarfile.FIFOTYPE), "a named pipe"),
        (special("m/vocab.txt", tarfile.GNUTYPE_SPARSE), "a sparse file"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_member_that_is_no_plain_file_inside_is_refused_by_its_name(
    member: Member, part: str, tmp_path: Path, folder: Path
) -> None:
    path = write(tmp_path / "model.tar.gz", plain("m/model.pt"), member)
    before = set(tmp_path.rglob("*"))
    refused(path, folder, part)
    assert set(tmp_path.rglob("*")) - before <= {folder / "0", folder / "0/model.pt"}


def test_a_chain_of_links_that_outgrows_the_longest_path_writes_nowhere(tmp_path: Path, folder: Path) -> None:
    """CVE-2025-4517: `os.path.realpath` gives up on so long a path, and the filter "data" passes the link."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("before")

    def members() -> Iterator[Member]:
        deep, directory = "", "d" * 247
        for step in "abcdefghijklmnop":
            yield special(os.path.join(deep, directory), tarfile.DIRTYPE)
            yield special(os.path.join(deep, step), tarfile.SYMTYPE, directory)
            deep = os.path.join(deep, directory)
        link = "/".join("abcdefghijklmnop") + "/" + "l" * 254
        yield special(link, tarfile.SYMTYPE, "../" * 16)
        yield special("escape", tarfile.SYMTYPE, f"{link}/../../{victim.name}")
        yield special("hard", tarfile.LNKTYPE, "escape/file")
        yield plain("hard", b"after")
        yield plain("escape/vocab.txt", b"after")
        yield plain("m/model.pt")

    refused(write(tmp_path / "model.tar.gz", *members()), folder, "a symbolic link")
    assert files_in(victim) == {"file": b"before"}


def test_contents_far_larger_than_the_archive_are_refused_before_they_fill_the_disk(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ALWAYS_ALLOWED", 2**21)
    bomb = bytes(2**23)
    for name in ("m/model.safetensors", "m/other.xyz"):  # what is not taken out takes time all the same
        path = write(tmp_path / "bomb.tar.gz", plain("m/model.pt"), plain(name, bomb), plain("m/vocab.txt"))
        assert path.stat().st_size < 2**14
        refused(path, folder, "unpacks to more than 2,097,152 bytes")
        assert sum(map(len, files_in(folder).values())) <= 2**21
    archive.take_out(write(tmp_path / "small.tar.gz", plain("m/model.pt", bytes(2**20))), folder)
    (tmp_path / "other").mkdir()
    noise = os.urandom(2**21)
    place = archive.take_out(write(tmp_path / "large.tar.gz", plain("m/model.pt", noise)), tmp_path / "other")
    assert files_in(place) == {"model.pt": noise}


def test_a_file_larger_than_the_disk_is_refused_with_the_free_space(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model.tar", plain("m/model.pt", bytes(5000)))
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 4000}))
    refused(path, folder, "'m/model.pt' takes 0.000 GB", "are free in", "TMPDIR")
    assert files_in(folder) == {}


def test_a_vocabulary_of_gigabytes_is_refused(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_SETTINGS", 1000)
    refused(write(tmp_path / "model.tar", plain("m/vocab.txt", bytes(1001))), folder, "'m/vocab.txt' has 1,001 bytes")


def long_header(path: Path) -> None:
    info, contents = plain("m/model.pt")
    info.pax_headers = {"comment": "c" * 2**21}
    write(path, (info, contents))


def negative_size(path: Path) -> None:
    block = bytearray(plain("m/model.pt")[0].tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512: the next header is this one again
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    first = plain("m/config.json", b"")[0].tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(first + bytes(block) + bytes(1024)))


def endless_names(path: Path) -> None:
    name = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)[0].tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(name * 5000))


def many_members(path: Path) -> None:
    one = plain("m/x", b"")[0].tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(one * 10_001 + bytes(1024)))


@pytest.mark.parametrize("make", [long_header, negative_size, endless_names, many_members])
def test_headers_that_would_take_memory_or_time_are_refused(
    make: Callable[[Path], None], tmp_path: Path, folder: Path
) -> None:
    make(tmp_path / "model.tar.gz")
    refused(tmp_path / "model.tar.gz", folder)


def test_any_damage_ends_in_the_files_or_in_one_line(tmp_path: Path, folder: Path) -> None:
    members = (plain("m/config.json", b"{}" * 300), plain("m/model.pt", os.urandom(900)), plain("m/vocab.txt"))
    rng, refusals = np.random.default_rng(1), 0
    for suffix in ("tar", "tar.gz"):
        path = write(tmp_path / f"model.{suffix}", *members)
        data = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(data)
            damaged[rng.integers(min(len(data), 4000))] ^= rng.integers(1, 256)
            path.write_bytes(damaged[: rng.integers(len(data) // 2, 2 * len(data))])
            before = set(tmp_path.iterdir())
            try:
                assert archive.take_out(path, folder).is_relative_to(folder)
            except UserError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
                refusals += 1
            assert set(tmp_path.iterdir()) == before
    assert refusals > 150
