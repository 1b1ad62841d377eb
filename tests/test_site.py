"""The site: every public name has its place in the reference, every figure is in the gallery, and it builds cleanly."""

import ast
import importlib
import os
import re
import sys
from pathlib import Path

import processes
import pytest

TREE = Path(__file__).parents[1]
SITE = TREE / "docs" / "site"


@pytest.fixture
def site(monkeypatch):
    """Imports a module of docs/site."""
    monkeypatch.syspath_prepend(str(SITE))
    return importlib.import_module


def packages_with_names() -> list[str]:
    """Packages that say which of their names are public."""
    inits = [path for top in ("spikegpt", "neuromorphic") for path in (TREE / top).rglob("__init__.py")]
    named = (path for path in inits if re.search(r"^__all__ = ", path.read_text(), re.MULTILINE))
    return [".".join(path.parent.relative_to(TREE).parts) for path in named]


def test_every_package_with_public_names_has_a_page_with_each(site):
    reference = site("reference")
    pages = reference.pages()
    for package in packages_with_names():
        text = pages[reference.page_of(package)]
        names = [name for name in importlib.import_module(package).__all__ if name != "__version__"]
        missing = [name for name in names if f".{name}\n" not in text]
        assert not missing, f"{package}: {missing}"


def test_what_a_page_points_to_is_there(site):
    reference = site("reference")
    for door in reference.DOORS:
        for name in reference.public_names(door):
            home, _, last = reference.identifier(door, name).rpartition(".")
            assert hasattr(importlib.import_module(home), last)


def figure_functions() -> set[str]:
    """Functions of the report that return a figure, but for those that a picture is made with."""
    found = set()
    for path in (TREE / "neuromorphic" / "report").glob("*figures.py"):
        for node in ast.parse(path.read_text()).body:
            is_figure = isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name)
            if is_figure and node.returns.id == "Figure" and not node.name.startswith("_"):
                found.add(f"neuromorphic.report.{path.stem}.{node.name}")
    return found


def test_every_figure_is_in_the_gallery(site):
    text, pictures = site("gallery").page()
    assert figure_functions() == {Path(picture).stem for picture in pictures} and len(pictures) >= 11
    assert all(content.startswith(b"\x89PNG") for content in pictures.values()) and "](gallery/" in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_network_for_anything(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("latex2mathml")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", str(SITE / "mkdocs.yml")]
    env = {**os.environ, "PYTHONPATH": str(TREE), "NO_MKDOCS_2_WARNING": "1"}
    done = processes.run([*words, "--site-dir", str(tmp_path / "site")], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    fetched = r"""<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="https?:"""
    assert not [page.name for page in pages if re.search(fetched, page.read_text())]
    model = (tmp_path / "site" / "reference" / "spikegpt.model.html").read_text()
    assert 'id="spikegpt.model.SpikeGPT.forward"' in model and "Parameters" in model
    block = (tmp_path / "site" / "block.html").read_text()
    assert block.count("<math") > 10 and "<mfrac>" in block and "$" not in re.sub("<script.*?</script>", "", block)
    assert not [page.name for page in pages if "arithmatex" in page.read_text()]
