"""The ledger: one recorded verdict per claim, in `data/ledger/`."""

import json
import textwrap
from dataclasses import asdict, fields
from pathlib import Path

from lab.atomic import write_json
from lab.data import DATA
from lab.verdict import Verdict

LEDGER = DATA / "ledger"


def record(verdict, folder=None):
    """Write `verdict` into the ledger, whole or not at all; return the path.

    The ledger is `data/ledger/`, one file per claim, unless `folder` is given.
    """
    folder = Path(folder or LEDGER)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{verdict.chapter}-{verdict.claim}.json"
    write_json(path, asdict(verdict))
    return path


def recorded(claim, folder=None):
    """The verdict on `claim` in the ledger, or `None` if it has none."""
    path = Path(folder or LEDGER)
    path /= f"{claim.chapter}-{claim.slug}.json"
    return _read(path) if path.exists() else None


def verdicts(chapters=("*",), folder=None):
    """All verdicts that the ledger has on these `chapters`, by number."""
    return [
        _read(path)
        for number in chapters
        for path in sorted(Path(folder or LEDGER).glob(f"{number}-*.json"))
    ]


def in_a_row(verdict):
    """What the figure of many verdicts needs to know about this one."""
    said = textwrap.wrap(f"{verdict.sentence} | {verdict.measured}", 64)
    return dict(
        name=f"{verdict.chapter} {verdict.claim.replace('-', ' ')}",
        word=verdict.word,
        mean=verdict.mean,
        low=verdict.low,
        high=verdict.high,
        threshold=verdict.threshold,
        side=verdict.side,
        hover="<br>".join(said),
    )


def out_of_date(claim, verdict):
    """Whether the claim has changed since `verdict` was recorded."""
    same = (verdict.threshold, verdict.side, bool(verdict.reason)) == (
        claim.threshold,
        claim.side,
        bool(claim.out_of_reach),
    )
    return not same or (
        not claim.out_of_reach
        and _as_kept(verdict.parameters) != _as_kept(claim.parameters)
    )


def _as_kept(parameters):
    """Parameters as the ledger keeps them: JSON turns tuples into lists."""
    return json.loads(json.dumps(parameters))


def table(chosen, folder=None):
    """The ledger as a Markdown table.

    `chosen` are either claims, which are listed even without a verdict, or
    numbers of chapters, which list all verdicts that the ledger has on them.
    """
    lines = [
        "| chapter | the paper says | measured here | verdict |",
        "|---|---|---|---|",
    ]
    for one in chosen:
        if isinstance(one, str):
            lines += [_line(None, v) for v in verdicts([one], folder)]
        else:
            lines.append(_line(one, recorded(one, folder)))
    return "\n".join(lines)


def limits(chapters, folder=None):
    """What the scale of these `chapters` cannot show, as a Markdown list.

    A limit that several claims share is listed once, with their names unless
    it holds for the whole chapter.
    """
    lines = []
    for number in chapters:
        measured = [v for v in verdicts([number], folder) if v.effects]
        texts = sorted({v.limits for v in measured if v.limits}, key=len)
        for i, text in enumerate(texts):
            whose = [v.claim for v in measured if v.limits.startswith(text)]
            names = ", ".join(whose) if len(whose) < len(measured) else ""
            known = [one for one in texts[:i] if text.startswith(one)]
            more = text.removeprefix(max(known, key=len, default="")).strip()
            lines.append(f"- {number} {names}".rstrip() + f": {more}")
    return "\n".join(lines)


def _read(path):
    """The verdict in the file `path`; the error names a file without one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Verdict)}
        lists = {n: tuple(found[n]) for n in ("effects", "seeds")}
        return Verdict(**{k: found[k] for k in known & found.keys()} | lists)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path.name} holds no verdict ({error}); "
            "delete it and run the claim again"
        ) from None


def _line(claim, verdict):
    """One line of the table; a verdict on an older claim is marked."""
    if verdict is None:
        said, measured = "not run yet", f"`lab claims {claim.chapter} --run`"
        if claim.out_of_reach:
            said, measured = "out of reach", claim.out_of_reach
        cells = [claim.chapter, claim.sentence, measured, said]
    else:
        old = claim is not None and out_of_date(claim, verdict)
        said = verdict.word + (" (of an older claim)" if old else "")
        cells = [verdict.chapter, verdict.sentence, verdict.measured, said]
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
