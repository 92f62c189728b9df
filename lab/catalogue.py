"""The 57 chapters: what each is about, where it lies, whether it is ready.

A part may have a closing notebook too, which compares its chapters.

The records are in `data/catalogue.toml`. Everything that lists chapters (the
command line, the README's table, the atlas, the tests) takes them from here.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lab.data import PACKAGE, ROOT, read_text

REPOSITORY = "routing-lab/routing-lab"
BRANCH = "main"
# the message where only the package is installed, as on Colab
NO_CLONE = (
    "the README and the notebooks are not here, only the package; clone "
    f"https://github.com/{REPOSITORY}"
)
DECIDES = (
    "a learned gate",
    "a learned predictor",
    "a language model",
    "a rule",
    "a solver",
    "a search",
    "a game",
    "chance",
)
CONSTRAINTS = (
    "accuracy",
    "balance",
    "bandwidth",
    "budget",
    "capacity",
    "cost",
    "data",
    "deadline",
    "latency",
    "memory",
    "visibility",
)


@dataclass(frozen=True)
class Part:
    """One of the six parts, a folder in `lab/` and one in `notebooks/`."""

    number: int
    name: str
    title: str

    @property
    def folder(self) -> str:
        return f"notebooks/{self.number}-{self.name}"


PARTS = (
    Part(1, "tokens", "Tokens: routing inside a model"),
    Part(2, "serving", "Serving: routing work onto hardware"),
    Part(3, "weights", "Weights: routing in weight space"),
    Part(4, "models", "Models: routing prompts to models and agents"),
    Part(5, "networks", "Networks: routing packets, flows and signals"),
    Part(6, "paths", "Paths: routes, plans and graphs"),
)


@dataclass(frozen=True, kw_only=True)
class Page:
    """One notebook of a part and its mechanism, under one name."""

    slug: str  # "adamoe"
    title: str  # its own, "AdaMoE: experts that do nothing"
    part: Part
    kernels: tuple[str, ...]  # operations in lab/kernels/
    minutes: int

    @property
    def notebook(self) -> str:
        """The notebook's path in the repository."""
        return f"{self.part.folder}/{self.name}.ipynb"

    @property
    def path(self) -> Path:
        """The notebook's path on this machine; a wheel has no notebooks."""
        return ROOT / self.notebook

    @property
    def ready(self) -> bool:
        """Whether it is written; notebook and mechanism come together."""
        return self.source.is_file()

    @property
    def mechanism(self) -> str:
        """The name of the mechanism's file in lab/<part>/."""
        return self.slug.replace("-", "_")

    @property
    def source(self) -> Path:
        """The mechanism's file on this machine; it may not exist yet."""
        return PACKAGE / self.part.name / f"{self.mechanism}.py"

    @property
    def module(self) -> str:
        """The mechanism to import, `lab.tokens.adamoe`."""
        return f"lab.{self.part.name}.{self.mechanism}"

    @property
    def keeper(self) -> str:
        """The module that retrains the models that the pictures use.

        `lab.tokens.adamoe_recorded` if it exists, else the mechanism.
        """
        recorded = self.source.with_stem(f"{self.mechanism}_recorded")
        return f"{self.module}_recorded" if recorded.is_file() else self.module

    @property
    def colab_url(self) -> str:
        return (
            "https://colab.research.google.com/github/"
            f"{REPOSITORY}/blob/{BRANCH}/{self.notebook}"
        )


@dataclass(frozen=True, kw_only=True)
class Chapter(Page):
    """One paper, one notebook, one mechanism."""

    number: str  # "02"
    paper: str
    authors: str
    year: int
    venue: str
    url: str
    code: str = ""  # the authors' repository, "" if none was found
    routed: str  # what is routed
    decides: str  # who decides, one of DECIDES
    constraint: str  # what holds it back, one of CONSTRAINTS

    @property
    def name(self) -> str:
        return f"{self.number}-{self.slug}"


@dataclass(frozen=True, kw_only=True)
class Closing(Page):
    """A notebook without a number; it closes a part by comparing its chapters.

    The command line finds it by its slug, like a chapter.
    """

    @property
    def number(self) -> str:
        """The slug, used where a chapter's number would be."""
        return self.slug

    @property
    def name(self) -> str:
        return self.slug


def _load(kind: type[Page], key: str) -> tuple:
    parts = {part.name: part for part in PARTS}
    pages = []
    for record in tomllib.loads(read_text("catalogue.toml"))[key]:
        record["part"] = parts[record["part"]]
        record["kernels"] = tuple(record["kernels"])
        pages.append(kind(**record))
    return tuple(pages)


CHAPTERS: tuple[Chapter, ...] = _load(Chapter, "chapter")
CLOSINGS: tuple[Closing, ...] = _load(Closing, "closing")
PAGES: tuple[Page, ...] = CHAPTERS + CLOSINGS


def chapter(key: str | int) -> Page:
    """The chapter with this number ("02", 2) or slug ("adamoe").

    A closing notebook is found by its slug.
    """
    wanted = str(key).strip().lower()
    if wanted.isdigit():
        wanted = wanted.zfill(2)
    names = {}
    for one in PAGES:
        for name in (one.number, one.slug, one.name, one.mechanism):
            names[name] = one
    if wanted in names:
        return names[wanted]
    message = f"there is no chapter {str(key)!r}; chapters are 01 to 57"
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    near += [n for n in names if n.replace("_", "").startswith(wanted)]
    if near and wanted and not wanted.isdigit():
        one = names[near[0]]
        message += f"; did you mean {one.slug} ({one.number})?"
    raise ValueError(message)
