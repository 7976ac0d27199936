"""Documents that say what the code says: README commands, settings reference, names of files."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from seminar.cli import JOBS, WORKFLOWS, parse_job_args

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_reference_is_rendered_from_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("render_reference", ROOT / "docs" / "render_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "reference.md").read_text() == module.render() + "\n", "run python docs/render_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(r"`((?:seminar|workflows|serve|cluster|configs|tests|docs|benchmarks|examples)/[\w./-]+)`", text))
    linked = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in linked if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_a_page_shows_is_understood(page: Path) -> None:
    """Jobs exist, and the settings behind them are read as the command line reads them."""
    for line in shown_commands(page.read_text()):
        words = shlex.split(line.replace("$job", "pretrain").replace("/app/", ""), comments=True)
        name, arguments = words[0], ["configs/tables.toml" if word == "my.toml" else word for word in words[1:]]
        assert name in JOBS, line
        if name in WORKFLOWS or name == "serve":
            parse_job_args(arguments)


def shown_commands(text: str) -> list[str]:
    """What stands behind `seminar` or `python -m workflows` in the shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [re.search(r"(?:^\s*(?:\$ )?seminar|python -m workflows) ([a-z$-].*)", line) for line in lines]
    return [match[1] for match in found if match]


def test_the_readme_has_no_blank_left_to_fill() -> None:
    assert "@@" not in (ROOT / "README.md").read_text()


def test_make_knows_the_commands_of_the_readme() -> None:
    targets = set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.M))
    assert {"demo", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_seminar_never_imports_ray() -> None:
    """Every module of the package imports with ray blocked: the science runs without a cluster."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['ray'] = None\n"
        "import seminar\n"
        "for module in pkgutil.walk_packages(seminar.__path__, 'seminar.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(len([name for name in sys.modules if name.startswith('seminar.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 40
