"""The generated parts of the README: its pictures and its table of verdicts.

The pictures are those that the notebooks store, and the table comes from the
recorded ledger. So the README shows what the lab computed.
"""

import base64
import json
from collections import Counter
from importlib import import_module
from pathlib import Path

from lab import catalogue, ledger
from lab.atomic import write_bytes
from lab.data import ROOT

README = ROOT / "README.md"
PICTURES = ROOT / "data" / "pictures"
# file: the notebook and the cell whose picture it is
SHOWN = {
    "atlas.png": ("notebooks/00-start-here.ipynb", "atlas"),
    "top-p-routing.png": (
        "notebooks/1-tokens/01-top-p-routing.ipynb",
        "explore",
    ),
    "verdict.png": (
        "notebooks/1-tokens/01-top-p-routing.ipynb",
        "claim-figure",
    ),
}
BEGIN = "<!-- ledger: made by `lab readme` -->"
END = "<!-- end of ledger -->"


def refresh() -> list[Path]:
    """Write pictures and table again; return what was written."""
    written = []
    for name, (notebook, cell) in SHOWN.items():
        path = PICTURES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, picture(ROOT / notebook, cell))
        written.append(path)
    text = with_ledger(README.read_text(encoding="utf-8"))
    write_bytes(README, text.encode("utf-8"))
    return [*written, README]


def picture(notebook: Path, cell: str) -> bytes:
    """The PNG that the cell with this id stores in the notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for one in cells:
        if one.get("id") != cell:
            continue
        for output in one.get("outputs", []):
            stored = output.get("data", {}).get("image/png")
            if stored:
                return base64.b64decode("".join(stored))
    raise ValueError(
        f'{notebook.name} stores no picture in a cell "{cell}";'
        f" run `lab render {notebook}` first"
    )


def with_ledger(text: str) -> str:
    """``text`` with the table of all recorded verdicts between its marks."""
    if BEGIN not in text or END not in text:
        raise ValueError(
            f"README.md lacks the line {BEGIN} or {END}; put both back where"
            " the table of verdicts should stand"
        )
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    ready = [one for one in catalogue.PAGES if one.ready]
    claims = [
        claim for one in ready for claim in import_module(one.module).CLAIMS
    ]
    return f"{before}{BEGIN}\n{summary(claims)}\n\n{END}{after}"


def summary(claims: list) -> str:
    """How many claims got which verdict, and all of them folded away."""
    found = [ledger.recorded(claim) for claim in claims]
    words = Counter(verdict.word for verdict in found if verdict)
    counts = ", ".join(f"**{n} {word}**" for word, n in words.most_common())
    table = ledger.table(claims)
    return (
        f"So far {counts}.\n\n<details><summary>All {len(claims)} claims"
        f"</summary>\n\n{table}\n\n</details>"
    )
