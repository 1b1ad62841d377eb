"""What mkdocs does not do by itself: pages made of the code, links that leave docs/, equations without a script."""

import html
import posixpath
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

HERE, TREE = Path(__file__).parent, Path(__file__).parents[2]
# pages of the tree beside docs/, and what they are called on the site
BESIDE = {"README.md": "tree/README.md", "CONTRIBUTING.md": "tree/CONTRIBUTING.md", "CHANGELOG.md": "tree/CHANGELOG.md"}
BESIDE |= {"benchmarks/README.md": "tree/benchmarks.md"}
_EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?!https?:|mailto:|#)[^)#\s]*)(#[^)]*)?\)")


def on_config(config):
    sys.path[:0] = [str(TREE), str(HERE)]
    import reference

    config.nav[-1]["Reference"] += [reference.page_of(door) for door in reference.DOORS]
    config.nav.append({"More": list(BESIDE.values())})
    return config


def on_files(files: Files, config) -> Files:
    import gallery
    import reference

    text, pictures = gallery.page()
    made = {**reference.pages(), "gallery.md": text, **pictures}
    made |= {uri: (TREE / path).read_text() for path, uri in BESIDE.items()}
    for page in (*(TREE / "docs").glob("*.md"), *(TREE / path for path in BESIDE)):
        for _, _, target, _ in _LINK.findall(page.read_text()):
            path = (page.parent / target).resolve()
            if path.suffix in (".png", ".svg") and not path.is_relative_to(TREE / "docs"):
                made[f"tree/{path.relative_to(TREE).as_posix()}"] = path.read_bytes()
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links within the tree into links within the site; what is no page or picture stays as its text."""
    own = next((path for path, uri in BESIDE.items() if uri == page.file.src_uri), f"docs/{page.file.src_uri}")

    def turned(found: re.Match) -> str:
        mark, text, target, part = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(own), target)) if target else own
        uri = BESIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else f"tree/{path}")
        if files.get_file_from_path(uri) is None:
            return text
        there = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{mark}[{text}]({there}{part or ''})"

    if page.file.src_uri.startswith(("reference/", "gallery")):
        return markdown
    return _LINK.sub(turned, markdown)


def on_page_content(content: str, page, config, files: Files) -> str:
    """Turn equations into MathML, which browsers typeset themselves."""

    def typeset(found: re.Match) -> str:
        tag, latex = found.groups()
        return convert(html.unescape(latex), display="block" if tag == "div" else "inline")

    return _EQUATION.sub(typeset, content)
