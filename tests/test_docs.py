"""The tables of keys in the documentation are those that the checks go by."""

from __future__ import annotations

import re
from pathlib import Path

import pymic_vf
from pymic_vf.cli import KEY_TABLES

pymic_vf.register()

DOCS = Path(__file__).parents[1] / "docs"


def test_tables_of_keys():
    from pymic_vf.host.settings.config_keys import key_tables
    from pymic_vf.keys import markdown_table

    tables = {title: keys for name in KEY_TABLES for title, keys in key_tables(name).items()}
    text = "\n".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    written = re.findall(r"^<!-- keys: (.*?) -->\n\n((?:\|.*\n)+)", text, re.M)
    ours = {title for title in tables if "of PyMIC" not in title}
    assert {title for title, _ in written} == ours
    for title, table in written:
        assert table.strip() == markdown_table(tables[title]), f"pymic_vf keys --markdown has another table of {title}"
