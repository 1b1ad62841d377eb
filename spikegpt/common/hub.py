"""Files from the Hugging Face hub, by name, through its own library: cached, resumed and checked there."""

import re
from pathlib import Path

from .errors import SpikegptError

NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:/(.+))?")
# what a folder of Hugging Face's needs; its code, if it has any, stays where it is
FOLDER_FILES = ("config.json", "tokenizer.json", "rwkv_vocab_v*.txt", "*.safetensors", "*.safetensors.index.json")
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def is_hub_name(source: Path) -> bool:
    """Whether `source` reads OWNER/NAME or OWNER/NAME/FILE and is no path: nothing here has its first name."""
    return (
        not source.is_absolute()
        and NAME.fullmatch(source.as_posix()) is not None
        and not Path(source.parts[0]).exists()
    )


def fetch(source: Path) -> Path:
    """Return the local path of OWNER/NAME/FILE or of the folder OWNER/NAME, downloaded if the cache lacks it.

    Raises:
        SpikegptError: no network, no such repository or file, or a repository without config.json, whose file must be
            named.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    found = NAME.fullmatch(source.as_posix())
    assert found is not None, source
    repository, file = found[1], found[2]
    try:
        if file is not None:
            return Path(hf_hub_download(repository, file))
        try:
            hf_hub_download(repository, "config.json")
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            files = [name for name in HfApi().list_repo_files(repository) if name.endswith((".pth", ".safetensors"))]
            listed = "it has " + ", ".join(files) if files else "it has no .pth and no .safetensors file"
            raise SpikegptError(
                f"{repository} on the hub is no folder of a model; name one of its files, {repository}/FILE: {listed}"
            ) from None
        folder = Path(snapshot_download(repository, allow_patterns=list(FOLDER_FILES)))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repository, allow_patterns=list(PICKLED_FILES))
        return folder
    except GatedRepoError:
        raise SpikegptError(
            f"{repository} on the hub asks for an agreement; accept it there, then log in with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise SpikegptError(
            f"there is neither a file or folder {source} here "
            f"nor a repository {repository} on the hub (or it is private)"
        ) from None
    except LocalEntryNotFoundError:
        raise SpikegptError(
            f"{source} is neither here nor in the hub's cache, and the hub cannot be reached: check the network"
        ) from None
    except EntryNotFoundError:
        raise SpikegptError(f"{repository} on the hub has no file {file}") from None
    except OSError as error:
        raise SpikegptError(f"cannot fetch {source} from the hub: {error}") from error
