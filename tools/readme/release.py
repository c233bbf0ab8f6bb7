"""Build what a package registry gets: links of the README lead to the repository, whose page is named.

    python tools/readme/release.py https://github.com/OWNER/NAME [--ref v0.1.0] [--output dist]

A registry shows the README without the files beside it. The build takes the commit, not what lies in the folder.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PICTURES = {".jpg", ".png", ".svg"}


def absolute(text: str, repository: str, ref: str) -> str:
    """Markdown whose relative links lead to a repository's files at a commit, tag or branch."""

    def replace(link: re.Match[str]) -> str:
        target = link[1]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        kind = "raw" if Path(target.partition("#")[0]).suffix in PICTURES else "blob"
        return f"]({repository.rstrip('/')}/{kind}/{ref}/{target})"

    return re.sub(r"\]\(([^)\s]+)\)", replace, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    parser.add_argument("--ref", default="main", help="where links lead")
    parser.add_argument("--output", type=Path, default=Path("dist"))
    chosen = parser.parse_args()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(name, filter="data")
        readme, project = Path(name, "README.md"), Path(name, "pyproject.toml")
        readme.write_text(absolute(readme.read_text(encoding="utf-8"), chosen.repository, chosen.ref), encoding="utf-8")
        urls = f'\n[project.urls]\nRepository = "{chosen.repository}"\n'
        project.write_text(project.read_text(encoding="utf-8") + urls, encoding="utf-8")
        words = [sys.executable, "-m", "build", "--outdir", str(chosen.output.resolve()), name]
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
