"""Writes names.json.xz from the CLDR tables in Babel."""

import json
import lzma
import unicodedata
from pathlib import Path

from babel import Locale

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
packed = lzma.compress(json.dumps(names, ensure_ascii=False).encode(), preset=9)
Path(__file__).with_name("names.json.xz").write_bytes(packed)
