"""The README as the page of a package index shows it.

There, links to files of this repository lead nowhere. With a `Source` among the project's URLs they
become absolute below it; without one only their text stays.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)([^)]+)\)\n*")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)]+)\)")


def readme(text: str, source: str | None) -> str:
    """The text with links that lead somewhere from anywhere."""
    if source is None:
        return _LINK.sub(r"\1", _IMAGE.sub("", text))
    base = f"{source.rstrip('/')}/blob/main"
    text = _IMAGE.sub(lambda m: m[0].replace(m[1], f"{base}/{m[1]}?raw=true"), text)
    return _LINK.sub(rf"[\1]({base}/\2)", text)


class ReadmeHook(MetadataHookInterface):
    """Called by hatchling, as pyproject.toml says."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Sets what pyproject.toml calls dynamic."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme(text, source)}
