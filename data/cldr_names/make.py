"""Writes names.json.xz from the CLDR tables in Babel 2.18.0."""

import json
import lzma
import unicodedata
from pathlib import Path

import babel
from babel import Locale

# another one has other names, and chapter 21 was recorded with these
if babel.__version__ != "2.18.0":
    raise SystemExit(
        f"this is Babel {babel.__version__}; pip install babel==2.18.0"
    )

LANGUAGES = (
    "en hu lv is tr et id sq es fr it de sv pl pt ca nl lb da hr".split()
)

names = {}
for language in LANGUAGES:
    locale = Locale(language)
    tables = {
        "language": locale.languages,
        "territory": locale.territories,
        "currency": locale.currencies,
    }
    names[language] = {
        f"{kind}:{key}": unicodedata.normalize("NFC", name)
        for kind, table in tables.items()
        for key, name in sorted(table.items())
    }
text = json.dumps(names, ensure_ascii=False)
packed = lzma.compress(text.encode(), preset=9)
Path(__file__).with_name("names.json.xz").write_bytes(packed)
