"""The `lab` command.

Each command imports the heavy modules that it needs, so that help and lists
appear immediately. A user's mistake gets one sentence and status 2.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    sys.exit(
        f"the lab command needs {error.name}: pip install -e '.[lab]' in the "
        "repository, or run `make lab` once"
    )

# click's base class of usage errors; typer may bundle its own copy of click
MISUSE = next(c for c in typer.BadParameter.__mro__ if "Click" in c.__name__)

app = typer.Typer(
    help="Routing Lab: 57 papers on routing, one living notebook each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# print text literally: "[lab]" is not a style and ":key:" not an emoji
out = Console(markup=False, emoji=False)
err = Console(
    stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False
)

WhichChapter = Annotated[
    str, typer.Argument(help="number or slug (02, adamoe)")
]
WhichNotebook = Annotated[
    str, typer.Argument(help="number or slug (02, adamoe), or a .ipynb file")
]
SomeChapters = Annotated[
    list[str] | None,
    typer.Argument(help="numbers or slugs; all chapters if left out"),
]
SomeNotebooks = Annotated[
    list[str] | None,
    typer.Argument(help="numbers, slugs or .ipynb files; all if left out"),
]
Values = Annotated[
    list[str] | None,
    typer.Option("-p", help="name=value, sets a parameter; repeatable"),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        help="name=values: one value (4), a list (0,4,8 or a,b) or a range "
        "(1:4, or 1:9:2 in steps of 2); repeatable; put a text that contains "
        "a comma in quotes: '\"a, b\",c'",
    ),
]
Folder = Annotated[
    Path | None, typer.Option("--out", help="folder for the results")
]


def main() -> None:
    """Runs the command; mistakes become one sentence and status 2."""
    try:
        status = app(standalone_mode=False)
    except MISUSE as error:
        # without a command the help is printed already, and that is enough
        if sentence := error.format_message().rstrip("."):
            say(f"{sentence}; see `lab --help`")
        status = 2
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except (ValueError, OSError, NotImplementedError) as error:
        say(str(error))
        status = 2
    except RuntimeError as error:
        # a notebook's own sentence; any other error keeps its traceback
        if type(error).__name__ != "NotebookFailed":
            raise
        say(str(error))
        status = 1
    # typer reports Ctrl-C by this status or by Abort
    if status == 130:
        say("stopped")
    sys.exit(status if isinstance(status, int) else 0)


def say(sentence: str) -> None:
    """Prints one sentence, unchanged, on the error stream."""
    err.print(sentence)


def tell(sentence: str) -> None:
    """Prints one line on the output stream, however long its paths are."""
    out.print(sentence, soft_wrap=True)


@app.command("list")
def list_chapters() -> None:
    """List all chapters by part and show which are ready."""
    from lab.catalogue import CHAPTERS, PAGES, PARTS

    for part in PARTS:
        mine = [one for one in PAGES if one.part == part]
        table = Table(
            title=f"{part.number}  {part.title}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        table.add_column("", style="bold")
        table.add_column("chapter", ratio=1)
        table.add_column("slug", style="cyan", no_wrap=True)
        table.add_column("min", justify="right")
        table.add_column("")
        for one in mine:
            state = Text("to come", "dim")
            if one.ready:
                state = Text("ready", "green")
            # a closing notebook has no number, only a slug
            number = one.number if one in CHAPTERS else ""
            row = (number, one.title, one.slug, str(one.minutes))
            table.add_row(*row, state)
        out.print(table, "")
    ready = sum(one.ready for one in CHAPTERS)
    out.print(f"{ready} of {len(CHAPTERS)} chapters are ready")


@app.command()
def run(chapter: WhichNotebook, p: Values = None, out_: Folder = None) -> None:
    """Run a notebook without a browser, with other parameters."""
    from lab import grid, headless, results

    notebook = headless.notebook_of(chapter)
    values = grid.parse(p or [], notebook, single=True)
    several = [name for name, some in values.items() if len(some) > 1]
    if several:
        raise ValueError(
            f"{several[0]} has several values, but `lab run` takes one; "
            "use `lab sweep`"
        )
    parameters = {name: some[0] for name, some in values.items()}
    folder = out_ or results.run_folder(notebook, parameters)
    done = headless.run_chapter(notebook, parameters, folder, progress=True)
    table = Table("score", "value", box=None, pad_edge=False)
    for name, value in results.flat(done.scores).items():
        table.add_row(name, str(value))
    out.print(table)
    tell(f"{done.seconds:.0f} s; everything is in {folder}")


@app.command()
def sweep(
    chapter: WhichNotebook,
    p: Grid = None,
    out_: Folder = None,
    workers: Annotated[int, typer.Option(help="local worker processes")] = 2,
    scheduler: Annotated[
        str | None, typer.Option(help="address of a running Dask scheduler")
    ] = None,
) -> None:
    """Run a notebook for each combination of values; repeat to resume."""
    from lab import grid, headless, results

    notebook = headless.notebook_of(chapter)
    values = grid.parse(p or [], notebook)
    folder = out_ or results.default_folder(notebook, values)
    try:
        done = headless.sweep(
            notebook, values, folder, scheduler, workers, progress=True
        )
    except KeyboardInterrupt:
        say(
            f"{folder} keeps what has finished; the same command resumes the "
            "sweep"
        )
        raise
    for job, sentence in done.failed.items():
        say(f"{job}: {sentence}")
    tell(
        f"{done.done} of {done.total} combinations done, {done.reused} of "
        f"them in an earlier run; everything is in {folder}"
    )
    if done.failed:
        say(f"{len(done.failed)} failed; the same command tries them again")
        for name, some in values.items():
            if len(some) > 1 and isinstance(some[0], str):
                say(
                    "put a text that contains a comma in quotes: "
                    f"-p '{name}=\"a, b\"'"
                )
        raise typer.Exit(1)


@app.command()
def claims(
    chapters: SomeChapters = None,
    run: Annotated[
        bool,
        typer.Option(
            "--run", help="measure and record them again; takes minutes"
        ),
    ] = False,
) -> None:
    """Show the ledger: what the papers claim and what came out here."""
    from lab import ledger
    from lab.catalogue import PAGES, chapter
    from lab.claims import run as run_claim
    from lab.data import must_keep

    # a chapter named twice counts once
    chosen = list(dict.fromkeys(chapter(one) for one in chapters or []))
    for one in chosen:
        if not one.ready:
            raise ValueError(
                f"chapter {one.number} ({one.slug}) is still to come"
            )
    chosen = chosen or [one for one in PAGES if one.ready]
    if run:
        must_keep()
        for one in chosen:
            for claim in import_module(one.module).CLAIMS:
                verdict = run_claim(claim)
                ledger.record(verdict)
                tell(f"{claim.slug}: {verdict}")
    numbers = [one.number for one in chosen]
    table = ledger.table(numbers)
    if chapters:
        limits = ledger.limits(numbers)
        table += f"\n\nWhat this scale cannot show:\n\n{limits}"
    # plain Markdown if the output goes into a file
    if out.is_terminal:
        out.print(Markdown(table))
    else:
        print(table)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def bench(context: typer.Context) -> None:
    """Measure the kernels; `lab bench --help` lists the options."""
    from lab.bench import main as measure

    measure(context.args)


@app.command()
def doctor() -> None:
    """Report what this machine will run, and why."""
    from lab.doctor import findings, look

    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    found = findings(look())
    for one in found:
        table.add_row(Text(one.level, colours[one.level]), one.what)
        if one.way_out:
            table.add_row("", Text(one.way_out, "dim"))
    out.print(table)
    if any(one.level == "problem" for one in found):
        raise typer.Exit(1)


@app.command()
def render(notebooks: SomeNotebooks = None) -> None:
    """Execute notebooks and store their pictures and checked numbers."""
    from lab import headless, rendering, structure
    from lab.catalogue import NO_CLONE
    from lab.data import must_keep

    paths = [headless.notebook_of(one) for one in notebooks or []]
    paths = paths or structure.notebooks()
    if not paths:
        raise ValueError(NO_CLONE)
    for path in paths:
        must_keep(path.parent)
    failed = 0
    with rendering.one_browser():
        for path in paths:
            try:
                changed = rendering.render(path)
            except headless.NotebookFailed as error:
                say(f"{path.name}: {error}")
                failed += 1
                continue
            state = "updated" if changed else "unchanged"
            out.print(f"{path.name}: {state}")
    if failed:
        raise typer.Exit(1)


@app.command()
def train(chapter: WhichChapter) -> None:
    """Retrain and keep the models that a chapter's pictures use."""
    from tqdm import tqdm

    from lab.catalogue import chapter as known
    from lab.data import must_keep

    one = known(chapter)
    if not one.ready:
        raise ValueError(f"chapter {one.number} ({one.slug}) is still to come")
    keeper = import_module(one.keeper)
    if not hasattr(keeper, "train_checkpoints"):
        raise ValueError(
            f"chapter {one.number} ({one.slug}) keeps no trained models"
        )
    must_keep()
    keeper.train_checkpoints(tqdm)


@app.command()
def readme() -> None:
    """Regenerate the pictures and the table of verdicts in README.md."""
    from lab.catalogue import NO_CLONE
    from lab.data import ROOT, must_keep
    from lab.readme import README, refresh

    if not README.is_file():
        raise FileNotFoundError(NO_CLONE)
    must_keep(ROOT)
    for path in refresh():
        out.print(f"{path.name}: written")


if __name__ == "__main__":
    main()
