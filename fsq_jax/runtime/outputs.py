"""Where a command will write, looked at before it computes anything."""

import contextlib
import errno
import os
import tempfile

from PIL import Image

from fsq_jax.runtime.user_error import UserError

_OTHERS = 64  # processes that look at one folder at the same time, each of which may remove it


def check_file(path: str) -> None:
    """Raises a UserError where a file can't be written at `path`; its folder need not be there."""
    if not path:
        return
    if os.path.isdir(path) or path.endswith(os.sep):
        raise UserError(f"{path!r} is a folder; give the name of a file to write.")
    if os.path.lexists(path) and not os.path.exists(path):
        raise UserError(f"{path!r} is a link to a file that isn't there.")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path!r} is no file that can be written whole.")
    check_folder(os.path.dirname(os.path.abspath(path)))


def check_picture(path: str) -> None:
    """Raises a UserError where no picture can be written at `path`: its suffix says which kind."""
    if not path:
        return
    Image.init()
    kinds = sorted(s for s, kind in Image.registered_extensions().items() if kind in Image.SAVE)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in kinds:
        raise UserError(
            f"{path!r} ends in no suffix of a picture ({suffix or 'none'}); give .png, .jpg or "
            ".webp, for example."
        )
    check_file(path)


def check_folder(path: str) -> None:
    """Raises a UserError where no file can be written into a folder, which need not be there yet.

    The missing part of it is made and removed again: who may write where is more than permissions.
    """
    path = os.path.abspath(path)
    try:
        for _ in range(_OTHERS):
            with contextlib.suppress(FileNotFoundError):
                return _write_into(path)
        _write_into(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = "; make room first" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(f"{path!r} can't be written to ({reason}){hint}.") from None


def _write_into(path: str) -> None:
    """Raises OSError where no file can be written; FileNotFoundError, too, where another process
    that looks at the same folder has removed what it had made of it."""
    missing, above = [], path
    while not os.path.isdir(above) and above != os.path.dirname(above):
        missing.append(above)
        above = os.path.dirname(above)
    made = []
    try:
        for folder in reversed(missing):
            try:
                os.mkdir(folder)
                made.append(folder)
            except FileExistsError:
                if not os.path.isdir(folder):  # or another process made it
                    raise UserError(f"{folder!r} is a file, not a folder to write to.") from None
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b" ")
    finally:
        for folder in reversed(made):
            try:
                os.rmdir(folder)
            except OSError:  # somebody has put something there
                break
