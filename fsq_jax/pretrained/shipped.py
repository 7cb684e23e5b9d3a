"""Small trained weights that come with the package, under short names: pretrained:NAME.

Each stands in its own folder with a card, which names the run that it is from: FOLDER/NAME/ holds
model.safetensors and README.md, as `fsq_jax.export` writes them.
"""

import os
import pathlib

from fsq_jax.runtime.user_error import UserError, did_you_mean

PREFIX = "pretrained:"
FOLDER = pathlib.Path(__file__).with_name("files")
FILE = "model.safetensors"


def names() -> list[str]:
    """The short names, without the prefix."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{FILE}"))


def local_path(path: str | os.PathLike) -> str:
    """The file that pretrained:NAME stands for; any other path as it is.

    Raises:
      UserError: the package brings nothing of that name.
    """
    path = os.fspath(path)
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if name not in names():
        raise UserError(f"The package brings no weights {name!r}{did_you_mean(name, names())}")
    return str(FOLDER / name / FILE)
