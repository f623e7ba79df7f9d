"""The documentation says what the code does: tables, links, flags, paths and trees."""

import ast
import importlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import parse
from tools.docs.tables import TABLES, refreshed

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.zh-CN.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "pipeline/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
PACKAGES = ("pipeline", "models", "train", "tools")

CONVERT, VERIFY = "tools/convert_imagenet.py", "tools/verify_dataset.py"
TRAIN, PROFILE = "train/run.py", "tools/profile_throughput.py"
BENCHES = {
    "bench": "tools/bench_loaders.py",
    "bench-convert": "tools/bench_convert.py",
    "bench-models": "tools/bench_models.py",
    "bench-loop": "tools/bench_loop.py",
    "bench-augment": "tools/bench_augment.py",
    "bench-scale": "tools/bench_scale.py",
    "bench-gpu": "tools/bench_gpu.py",
}
"""What a target of the Makefile hands BENCHARGS to."""

SUBJECTS = {
    "convert": [CONVERT, VERIFY],
    "profile": [PROFILE, TRAIN],
    "train": [TRAIN],
    "augmentation": [TRAIN],
    "recipes": [TRAIN],
    "clusters": [TRAIN],
    "models": [TRAIN],
    "use": [TRAIN, "tools/predict.py", "tools/export.py"],
    "loaders": [TRAIN],
    "zoos": [TRAIN],
}
"""Whose flags a page means where it names one without its command; other pages mean any of the main commands."""

_FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
_FOREIGN = re.compile(r"^(?:bash|python3 \./|torchrun|srun|(?:parts=\$\()?sbatch|scancel|scontrol|mpirun|#SBATCH)\b")
_COMMAND = re.compile(r"(?<!tests/)(?:tools|train)/\w+\.py")
_PATH = re.compile(
    rf"(?:{'|'.join([*PACKAGES, 'tests', 'docs'])})/[\w./-]*|\.ci/\w+|\w+\.(?:md|toml|cff)|Makefile|LICENSE|NOTICE"
)


@pytest.fixture(params=PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def page(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_tables_are_those_of_the_code() -> None:
    texts = {page: page.read_text() for page in PAGES}
    out_of_date = [str(page) for page, text in texts.items() if refreshed(text) != text]
    assert not out_of_date, "run `make docs`"


def test_every_table_stands_in_a_page() -> None:
    everything = "".join(page.read_text() for page in PAGES)
    assert [name for name in TABLES if f"<!-- table: {name} -->" not in everything] == []


# Links


def without_code(text: str) -> str:
    return _SPAN.sub("", _FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    broken = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in targets] == []


# Paths


def test_paths_exist(page: Path) -> None:
    spans = _SPAN.findall(_FENCE.sub("", page.read_text()))
    named = {span for span in spans if _PATH.fullmatch(span)} | set(_COMMAND.findall(page.read_text()))
    assert [path for path in sorted(named) if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


def test_make_has_the_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    spans = " ".join(command_lines(page.read_text()))
    assert sorted(set(re.findall(r"\bmake ([a-z-]+)", spans)) - targets) == []


# Flags


@cache
def flags_of(command: str) -> frozenset[str]:
    """The flags that a command's help lists. Its settings are the second argument of its call of run_command."""
    tree = ast.parse((ROOT / command).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_command"]
    settings = ast.unparse(calls[0].args[1])
    module = next(
        node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module and settings in [item.name for item in node.names]
    )
    kind: type[Any] = getattr(importlib.import_module(module), settings)
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as shown, pytest.raises(SystemExit):
        parse(kind, ["--help"])
    shown.seek(0)
    heads = re.findall(r"^│ (?:-h, )?(--[a-z].*)$", shown.read(), re.MULTILINE)
    return frozenset(flag for head in heads for flag in re.findall(r"(?:^|, )--([a-z0-9-]+)", head))


def command_lines(text: str) -> Iterator[str]:
    """Each line of a fenced block, with those that it continues in, and each span of code."""
    for block in _FENCE.findall(text):
        yield from re.sub(r"\\\n", " ", block).splitlines()
    of_others = False
    for line in _FENCE.sub("", text).splitlines():
        of_others = line.startswith(("| their flag", "| 原来")) or (of_others and line.startswith("|"))
        yield from _SPAN.findall(line.partition(" | ")[2] if of_others else line)


def meant_by(line: str, page: Path) -> tuple[str, list[str]]:
    """The part of a line whose flags are ours, and the commands that may have them."""
    if target := re.search(r"make (bench[a-z-]*)", line):
        return line, [BENCHES[target[1]]]
    if commands := [path for path in _COMMAND.findall(line) if "run_command(" in (ROOT / path).read_text()]:
        return line.partition(commands[0])[2], commands[:1]
    if _FOREIGN.match(line):
        return "", []
    return line, SUBJECTS.get(page.stem.removesuffix(".zh-CN"), [CONVERT, VERIFY, TRAIN, PROFILE])


def test_flags_exist(page: Path) -> None:
    unknown = []
    for line in command_lines(page.read_text()):
        part, commands = meant_by(line, page)
        known = set().union(*map(flags_of, commands))
        unknown += [f"--{flag} ({line})" for flag in _FLAG.findall(part) if flag not in known]
    assert unknown == []


def test_a_flag_that_does_not_exist_is_seen() -> None:
    page = ROOT / "docs" / "train.md"
    assert {"data", "nproc", "model-ema", "no-channels-last"} <= flags_of(TRAIN)
    part, commands = meant_by("train/run.py --data x --bogus", page)
    assert [flag for flag in _FLAG.findall(part) if flag not in flags_of(commands[0])] == ["bogus"]


# Trees


def tree_part(page: Path, package: str) -> str:
    """A package in a page's tree: its line, and the indented ones after it."""
    blocks = [block for block in _FENCE.findall(page.read_text()) if re.search(rf"^{package}/", block, re.MULTILINE)]
    assert len(blocks) == 1, f"{page}: {len(blocks)} trees of {package}/"
    part = re.search(rf"^{package}/.*\n(?:[ ].*\n)*", blocks[0], re.MULTILINE)
    assert part
    return part[0]


def tree_of(page: Path, package: str) -> list[str]:
    """The modules that a page's tree lists under a package."""
    return re.findall(r"\b\w+\.py\b", tree_part(page, package))


def modules_of(package: str) -> list[str]:
    """The modules that the tree has to name: all, but of tools/ the commands only."""
    files = (ROOT / package).glob("*.py") if package == "tools" else (ROOT / package).rglob("*.py")
    return [file.name for file in files if file.name != "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tree_file_by_file_names_every_module(package: str) -> None:
    listed, modules = Counter(tree_of(ROOT / "docs" / "README.md", package)), Counter(modules_of(package))
    missing, superfluous = sorted((modules - listed).elements()), sorted((listed - modules).elements())
    assert missing == []
    assert superfluous == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_readmes_tree_names_every_folder(package: str) -> None:
    part = "\n".join(tree_part(ROOT / "README.md", package).splitlines()[1:])
    folders = {file.parent.name for file in (ROOT / package).rglob("*.py") if file.parent != ROOT / package}
    assert sorted(folders) == sorted(re.findall(r"\b(\w+)/", part))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_files_that_the_readmes_tree_names_exist(package: str) -> None:
    assert set(tree_of(ROOT / "README.md", package)) <= set(modules_of(package))


def test_both_readmes_print_the_same_tree_of_the_data_path() -> None:
    in_front, inside = (tree_part(ROOT / folder / "README.md", "pipeline") for folder in ("", "pipeline"))
    assert in_front == inside
