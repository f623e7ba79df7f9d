"""The Chinese pages say what the English ones say, as far as a test can see."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = (("README.md", "README.zh-CN.md"), ("docs/zoos.md", "docs/zoos.zh-CN.md"))
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


def read(pair: tuple[str, str]) -> tuple[str, str]:
    english, chinese = ((ROOT / name).read_text() for name in pair)
    return english, chinese


def sections(text: str) -> list[str]:
    """What stands below each heading, code blocks left out."""
    return re.split(r"^#+ .*$", _FENCE.sub("", text), flags=re.MULTILINE)


def levels(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", _FENCE.sub("", text), re.MULTILINE)]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, each with the code in its cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", _FENCE.sub("", text), re.MULTILINE)
    return [[sorted(_SPAN.findall(row)) for row in block.splitlines()] for block in blocks]


@pytest.fixture(params=PAGES, ids=lambda pair: pair[1])
def pages(request: pytest.FixtureRequest) -> tuple[str, str]:
    return read(request.param)


def test_the_headings_correspond(pages: tuple[str, str]) -> None:
    english, chinese = pages
    assert levels(chinese) == levels(english)


def test_the_commands_and_trees_are_the_same(pages: tuple[str, str]) -> None:
    english, chinese = pages
    assert _FENCE.findall(chinese) == _FENCE.findall(english)


def test_the_tables_have_the_same_rows(pages: tuple[str, str]) -> None:
    english, chinese = pages
    assert tables(chinese) == tables(english)


def test_the_numbers_of_the_tables_are_the_same(pages: tuple[str, str]) -> None:
    english, chinese = (
        [re.findall(r"\d[\d.]*", row) for row in re.findall(r"^\|.*$", _FENCE.sub("", page), re.MULTILINE)]
        for page in pages
    )
    assert chinese == english


def test_each_section_names_the_same_flags_and_files(pages: tuple[str, str]) -> None:
    english, chinese = ([sorted(set(_SPAN.findall(section))) for section in sections(page)] for page in pages)
    assert chinese == english


def test_each_section_links_to_the_same_pages(pages: tuple[str, str]) -> None:
    english, chinese = (
        [
            sorted(set(re.findall(r"\]\(([^)]+)\)", section.replace(".zh-CN.md", ".md"))) - {"README.md", "zoos.md"})
            for section in sections(page)
        ]
        for page in pages
    )
    assert chinese == english
