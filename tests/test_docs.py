"""Every command line of README.md and docs/ parses, every page that is linked is there, every make target exists."""

import copy
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from spanbert_jax import cli
from spanbert_jax.config import from_dict
from spanbert_jax.config_check import check

# ml_collections loads configuration files so.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_PYTHON = r"(?:[\w./-]*python|\$BUILD)"
_BY_FLAGS = ("show_masking", "compile_tpu", "build_blocks")  # tools whose flags are absl's, as main's


def commands(page: Path) -> list[str]:
    """The commands of a page's indented blocks, with their continued lines, and the flags between its backticks."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    shown = [line for line in blocks if re.search(rf"(^|\s|&& ){_PYTHON} (-m spanbert_jax|tools/)", line)]
    ticked = re.findall(r"`([^`\n]*)`", re.sub(r"\n", " ", text))
    named = [found for found in ticked if re.match(rf"{_PYTHON} (-m spanbert_jax|tools/)", found)]
    of_runs = [
        found if "--config " in found else f"--config configs/tiny.py {found}" for found in ticked if _is_flags(found)
    ]
    return [*shown, *named, *(f"python -m spanbert_jax.main {found}" for found in of_runs)]


def _is_flags(text: str) -> bool:
    """Whether the text is nothing but flags with values, as the tables of recipes have them."""
    return text.startswith("--config") and all(
        re.match(r"--config(\.[a-z_.]+=\S+)?$|configs/", w) for w in text.split()
    )


def arguments(command: str) -> tuple[str, list[str]]:
    """(module, its arguments) of a command."""
    command = re.sub(r"\s{2,}[#(].*$", "", command).rstrip('"').strip()
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word in ("-m", "|") or word.startswith("tools/"))
    if words[place] == "|":
        words = words[place + 1 :]
        place = next(i for i, word in enumerate(words) if word == "-m" or word.startswith("tools/"))
    if words[place] == "-m":
        return words[place + 1], words[place + 2 :]
    return f"tools.{Path(words[place]).stem}", words[place + 1 :]


ALL = [(page.name, command) for page in PAGES for command in commands(page)]


def test_the_pages_have_commands() -> None:
    assert len(ALL) > 40 and {"README.md", "finetuning.md", "tpu.md"} <= {name for name, _ in ALL}


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command[:60]}" for page, command in ALL])
def test_a_command_of_the_pages_parses(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, given = arguments(command)
    if module == "tensorboard.main":
        return
    loaded = importlib.import_module(module)
    if module == "spanbert_jax.main" or module.removeprefix("tools.") in _BY_FLAGS:
        parse_flags(module, given, monkeypatch)
    else:
        monkeypatch.setattr(cli, "status", lambda work: 0)
        assert loaded.main(given) == 0, command


def parse_flags(module: str, given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses as `main.run_app` does, into flags of this call's own, and checks the configuration that comes of them."""
    if module == "tools.build_blocks":  # its other flags are Beam's
        given = [word for word in given if word.startswith("--config") or word.endswith(".py")]
    monkeypatch.setattr(sys, "argv", [module, *given])  # where ml_collections looks for fields
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    for flag in copies(module):
        values[flag.name] = flag
    left = values([module, *given])
    assert left == [module], f"no flags: {left[1:]}"
    built = from_dict(config.value.to_dict())
    if built.task == "pretraining":
        check(built)


def copies(module: str) -> list[flags.Flag]:
    """The other flags of main and of the tool."""
    by_module = flags.FLAGS.flags_by_module_dict()
    found = [flag for name in ("spanbert_jax.main", module) for flag in by_module.get(name, ())]
    return [copy.deepcopy(flag) for flag in dict.fromkeys(found) if flag.name != "config"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_is_listed_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"docs/{page.name}" in readme for page in PAGES[1:])


def test_every_make_target_that_the_pages_name_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([\w./-]+)", page.read_text(encoding="utf-8"), flags=re.M):
            assert re.search(rf"^([\w./ -]* )?{re.escape(target)}[ :]", makefile, flags=re.M), f"{page.name}: {target}"
