"""The catalogue: 57 chapters, each under one name everywhere."""

import re
from collections import Counter

import pytest

from lab.catalogue import (
    CHAPTERS,
    CLOSINGS,
    CONSTRAINTS,
    DECIDES,
    PAGES,
    PARTS,
    REPOSITORY,
    chapter,
)
from lab.data import ROOT, data_path
from lab.structure import anatomy, notebooks


def test_there_are_57_chapters_numbered_once_each():
    numbers = sorted(one.number for one in CHAPTERS)
    assert numbers == [f"{n:02}" for n in range(1, 58)]
    slugs = Counter(one.slug for one in CHAPTERS)
    assert max(slugs.values()) == 1


def test_the_parts_hold_as_many_chapters_as_planned():
    sizes = [sum(one.part == part for one in CHAPTERS) for part in PARTS]
    assert sizes == [10, 9, 9, 10, 9, 10]


@pytest.mark.parametrize("one", CHAPTERS, ids=lambda one: one.name)
def test_a_record_is_whole(one):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.slug)
    assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", one.url)
    assert 2015 <= one.year <= 2026
    assert 20 <= one.minutes <= 40
    assert one.decides in DECIDES
    assert one.constraint in CONSTRAINTS
    assert one.routed and one.kernels and one.authors and one.venue
    # a title names the idea, not only the paper
    assert ": " in one.title and len(one.title) <= 60
    for text in (one.title, one.paper, one.authors):
        assert text == text.strip() and "  " not in text


def test_every_axis_of_the_atlas_tells_chapters_apart():
    for allowed, used in (
        (DECIDES, {one.decides for one in CHAPTERS}),
        (CONSTRAINTS, {one.constraint for one in CHAPTERS}),
    ):
        assert used == set(allowed)


def test_a_closing_notebook_goes_by_its_slug():
    assert [one.part.number for one in CLOSINGS] == [1]
    arena = chapter("Arena")
    assert arena.number == arena.name == "arena"
    assert arena.notebook == "notebooks/1-tokens/arena.ipynb"
    assert arena.module == "lab.tokens.arena"


@pytest.mark.parametrize(
    "key", ["02", "2", 2, "adamoe", "AdaMoE", "02-adamoe"]
)
def test_a_chapter_is_found_by_number_and_name(key):
    assert chapter(key).name == "02-adamoe"


def test_the_paths_and_the_link_of_a_chapter():
    one = chapter("02")
    assert one.notebook == "notebooks/1-tokens/02-adamoe.ipynb"
    assert one.module == "lab.tokens.adamoe"
    assert one.colab_url == (
        f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/"
        "notebooks/1-tokens/02-adamoe.ipynb"
    )


def test_what_is_recorded_has_a_file_of_its_own_or_stays():
    assert chapter("bricks").keeper == "lab.tokens.bricks_recorded"
    assert chapter("arena").keeper == "lab.tokens.arena"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("adamo", "did you mean adamoe .02."),
        ("topp", "did you mean top-p-routing .01."),
        ("58", "chapters are 01 to 57$"),
        ("", "chapters are 01 to 57$"),
    ],
)
def test_an_unknown_chapter_is_refused_with_a_hint(key, hint):
    with pytest.raises(ValueError, match=hint):
        chapter(key)


def test_one_name_everywhere():
    """Notebook, mechanism, its test and the catalogue agree."""
    on_disk = {
        str(path.relative_to(ROOT)) for path in notebooks() if anatomy(path)
    }
    ready = [one for one in PAGES if one.ready]
    assert on_disk == {one.notebook for one in ready}
    for one in ready:
        part, name = one.part.name, one.mechanism
        assert (ROOT / f"lab/{part}/{name}.py").is_file(), one.module
        assert (ROOT / f"tests/{part}/test_{name}.py").is_file(), one.module
        for kernel in one.kernels:
            assert (ROOT / f"lab/kernels/{kernel}.py").is_file(), kernel


def test_each_mechanism_with_claims_is_a_chapters():
    known = {(one.part.name, one.mechanism) for one in PAGES}
    for part in PARTS:
        for path in (ROOT / "lab" / part.name).glob("*.py"):
            if re.search(r"^CLAIMS\b", path.read_text(), re.M):
                assert (part.name, path.stem) in known


def test_the_catalogue_lies_where_data_is_looked_for():
    assert data_path("catalogue.toml").parent == ROOT / "data"
