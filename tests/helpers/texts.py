"""Folders of texts."""

from pathlib import Path


def write(folder: Path, **texts: str) -> Path:
    """Write each text into FOLDER/NAME.txt; return the folder."""
    folder.mkdir(exist_ok=True)
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text)
    return folder
