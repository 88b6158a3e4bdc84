"""Takes the pages that lie beside docs/ into the site, with their links set right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGES = ("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this once it has collected the pages of docs/."""
    from mkdocs.structure.files import File

    root = Path(config["docs_dir"]).parent
    for name in PAGES:
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files
