"""Command lines end as cli.py promises."""

import ast
import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from spanbert_jax import cli
from spanbert_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [*(ROOT / "spanbert_jax" / name for name in ("main.py", "serve.py")), *sorted((ROOT / "tools").glob("*.py"))]
HEAVY = {"jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets", "torch", "transformers", "matplotlib"}


def raises(error: BaseException) -> int:
    def work() -> None:
        raise error

    return cli.status(work)


def test_a_mistake_ends_in_one_line_on_stderr_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(UserError("FILE, line 3: found X; expected Y")) == 1
    printed = capsys.readouterr()
    assert printed.err == "error: FILE, line 3: found X; expected Y\n"
    assert printed.out == ""


def test_ctrl_c_ends_with_the_status_that_a_launcher_restarts_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert raises(KeyboardInterrupt()) == cli.STOPPED_EARLY == 75
    assert "the same command goes on" in capsys.readouterr().err


def test_work_without_a_status_of_its_own_succeeded() -> None:
    assert cli.status(lambda: None) == 0
    assert cli.status(lambda: 3) == 3


def test_lines_of_standard_input_end_at_lf_or_crlf_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "\ufeffa\u2028b\fc\n \r\nd\r\n\x85e".encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given)))
    assert cli.lines_of_standard_input() == ["a\u2028b\fc", "d", "\x85e"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"a\n\xe9\n")))
    with pytest.raises(UserError, match=r"^standard input, line 2: byte 2 \(0xe9\) is not UTF-8; convert it"):
        cli.lines_of_standard_input()


def test_every_character_of_a_coloured_text_keeps_its_place() -> None:
    text = "a\tb\r\nc\fd\ve\bf\ag"
    assert cli.coloured_text(text).plain == "a b \nc d e f g"


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    """As `tools/... | head -1` does."""
    script = (
        "import sys\nfrom spanbert_jax import cli\nsys.exit(cli.status(lambda: [print(i) for i in range(10**5)] and 0))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    ],
    ids=lambda error: error.strerror,
)
def test_a_full_disk_ends_in_one_line_with_the_path_and_what_is_free(
    error: OSError, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error.filename = str(tmp_path / "model")
    assert raises(error) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/model: cannot be written ({error.strerror}; ") and said.count("\n") == 1
    assert f"GB are free in {tmp_path}); make room and start again" in said


def test_a_library_s_own_error_of_a_full_disk_is_told_by_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    """As safetensors, tensorstore and a pipeline that wraps another error raise them."""
    assert raises(RuntimeError('IoError(Os { code: 28, message: "No space left on device" })')) == 1
    wrapped = RuntimeError("stage 3")
    wrapped.__cause__ = ValueError("Error writing local file [OS error 28: ENOSPC No space left on device]")
    assert raises(wrapped) == 1
    assert capsys.readouterr().err.count("cannot be written (No space left on device); make room") == 2
    with pytest.raises(RuntimeError, match="a fault of ours"):
        raises(RuntimeError("a fault of ours"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    script = "import sys\nfrom spanbert_jax import cli\nsys.exit(cli.status(lambda: print('x' * 10)))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "standard output: cannot be written (No space left on device)" in done.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_ends_through_cli_run_and_only_where_it_is_the_program(path: Path) -> None:
    last = ast.parse(path.read_text()).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert ast.unparse(last.body[-1]).startswith("cli.run(")
    assert len(re.findall(r"cli\.run\(|use_huge_pages|execv|sys\.exit\((main|table)", path.read_text())) == 1


def test_no_command_imports_a_heavy_library_before_it_starts_anew() -> None:
    """Otherwise the import would be paid twice, and --help and a mistyped flag would wait for it."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in COMMANDS]
    script = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    assert not {HEAVY}.intersection(sys.modules), (name, {HEAVY}.intersection(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are glibc's")
@pytest.mark.parametrize("given", [None, "glibc.malloc.check=0"])
def test_a_command_starts_anew_once_in_huge_pages_unless_the_user_says_otherwise(given: str | None) -> None:
    script = (
        "import os, sys\nfrom spanbert_jax import cli\n"
        "cli.run(lambda: print(os.environ['GLIBC_TUNABLES'], sys.argv) or 7)"
    )
    environment = {"PYTHONPATH": str(ROOT)} | ({} if given is None else {"GLIBC_TUNABLES": given})
    done = subprocess.run([sys.executable, "-c", script, "a word"], env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{given or 'glibc.malloc.hugetlb=1'} ['-c', 'a word']\n"
