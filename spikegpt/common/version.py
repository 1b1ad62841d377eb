"""The version of this package, in one place."""

from pathlib import Path

__version__ = "0.1.0"


def tree_version() -> str:
    """Return the version, with the commit where the sources are a git checkout."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        # in a worktree .git is a file that names the folder
        folder = git if git.is_dir() else Path(git.read_text(encoding="utf-8").removeprefix("gitdir: ").strip())
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref: "):
            shared = folder if git.is_dir() else folder.parents[1]
            head = (shared / head.removeprefix("ref: ")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return __version__
    return f"{__version__}, commit {head[:12]}"
