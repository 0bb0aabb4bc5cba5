"""`python -m docs.generate`, with `--check` to write nothing."""

from __future__ import annotations

import sys

from docs.generate.pages import DOCS, generated

CHECK = "--check" in sys.argv
old = 0
for name, text in generated().items():
    page = DOCS / name
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        old += 1
        if not CHECK:
            page.write_text(text, encoding="utf-8")
        print(f"docs/{name} {'is not what the code says' if CHECK else 'is written'}")
sys.exit(CHECK and old > 0)
