"""What git knows of the code: commit and changes of a tree, a file as it was at a commit, the user's name."""

import logging
import subprocess
from pathlib import Path

logger = logging.getLogger(__name__)

# What the pipeline itself writes into the tree while it runs: not a change of the code that ran.
WRITTEN_BY_RUNS = ("dvc.lock", "artifacts", "metrics", "plots")


def git_facts(
    root: Path, commit: str | None = None, is_dirty: bool | None = None
) -> tuple[str | None, bool | None]:
    """Commit of the tree at `root` and whether it was changed since; None for what is not known.

    Files that the pipeline itself writes (metrics, dvc.lock ...) do not make a tree dirty.

    Args:
        commit, is_dirty: What counts where there is no git, as in an image.
    """
    head = git(root, "rev-parse", "HEAD") if is_repository(root) else None
    if head is None:
        return commit or None, is_dirty
    ignored = [f":(exclude){name}" for name in WRITTEN_BY_RUNS]
    changes = git(root, "status", "--porcelain", "--", ".", *ignored)
    return head, None if changes is None else bool(changes)


def is_repository(root: Path) -> bool:
    """Whether a folder is the top of a git repository; a folder inside one has no history of its own."""
    return (Path(root) / ".git").exists()


def has_commit(root: Path, commit: str) -> bool:
    """Whether the history of a repository knows a commit."""
    return git(root, "cat-file", "-e", f"{commit}^{{commit}}") is not None


def text_at(root: Path, commit: str, name: str) -> str | None:
    """The text of a file as it was at a commit; None where it or the commit is not known."""
    return git(root, "show", f"{commit}:{name}") if is_repository(root) else None


def user_name(root: Path) -> str | None:
    """The name that git writes into this user's commits; None where there is none."""
    return git(root, "config", "user.name") or None


def git(root: Path, *arguments: str) -> str | None:
    """What git answers; None where git is missing or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        logger.debug("git %s: %s", arguments[0], getattr(error, "stderr", None) or error)
        return None
    return done.stdout.strip()
