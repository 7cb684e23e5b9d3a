"""Members of a zip archive (.npz, .pth), each checked against the file's size before it is read.

A zip file of kilobytes can say that it holds gigabytes, and can hold them: what is unpacked at
once is bounded by the file's own size, and what a member says of its size by what comes out of it.
"""

import os
import struct
import zipfile
import zlib
from types import TracebackType

from fsq_jax.runtime import bounded
from fsq_jax.runtime.user_error import UserError

FREE = 16 << 20  # bytes that any archive may unpack to
MAX_RATIO = 64  # bytes for each one of the file, beyond that; trained weights stay below 2
_MAX_MEMBERS = 100_000
_CHUNK = 1 << 20
_READ = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
# What `zipfile` and `zlib` raise for damage and for what they can't read.
_DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


class Member:
    """A member that is being read from its beginning; close it, or use it in a `with`."""

    def __init__(self, file, path: str, name: str, num_bytes: int):
        self._file, self.path, self.name = file, path, name
        self.remaining = num_bytes

    def read(self, num_bytes: int) -> bytes:
        """The next bytes, exactly so many; a UserError where there are fewer, or damaged ones."""
        if num_bytes > self.remaining:
            raise UserError(
                f"{self.path}: {self.name} has {self.remaining} bytes left where "
                f"{num_bytes} are expected."
            )
        try:
            data = self._file.read(num_bytes)
        except _DAMAGE as error:
            raise damaged(self.path, f"{self.name}: {error or type(error).__name__}") from None
        if len(data) < num_bytes:
            raise damaged(self.path, f"{self.name} ends {num_bytes - len(data)} bytes early")
        self.remaining -= num_bytes
        return data

    def readinto(self, buffer: memoryview) -> None:
        """Fills a buffer of bytes, piece by piece."""
        for start in range(0, len(buffer), _CHUNK):
            stop = min(start + _CHUNK, len(buffer))
            buffer[start:stop] = self.read(stop - start)

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


class Archive:
    """A zip file that is open for reading; use it in a `with`.

    Args:
      path: the file.
      expected: what it should be, for messages ("an .npz file").

    Raises:
      UserError: it is missing, no plain file, no zip archive, or damaged.
    """

    def __init__(self, path: str | os.PathLike, expected: str = "a zip archive"):
        self.path = os.fspath(path)
        self._file = bounded.open_regular(self.path)
        self.num_bytes = bounded.size(self._file)
        try:
            self._zip = zipfile.ZipFile(self._file)
            self._members = self._checked()
        except _DAMAGE as error:
            self._file.close()
            if isinstance(error, UserError):
                raise
            raise damaged(self.path, str(error) or type(error).__name__, expected) from None

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        """{name: member}, whose compressed bytes are no more than there are."""
        infos = self._zip.infolist()
        if len(infos) > _MAX_MEMBERS:
            raise UserError(
                f"{self.path} has {len(infos)} members; expected {_MAX_MEMBERS} at most."
            )
        members = {info.filename: info for info in infos}
        if len(members) < len(infos):
            raise damaged(self.path, "two of its members have the same name")
        if sum(info.compress_size for info in infos) > self.num_bytes:
            raise damaged(self.path, "its members overlap")
        for info in infos:
            if info.compress_type not in _READ or info.flag_bits & 1:
                kind = (
                    "encrypted"
                    if info.flag_bits & 1
                    else (f"compressed in a way that is not read (method {info.compress_type})")
                )
                raise UserError(f"{self.path}: {info.filename!r} is {kind}.")
        return members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    @property
    def limit(self) -> int:
        """The bytes that may be unpacked at once."""
        return max(FREE, MAX_RATIO * self.num_bytes)

    def size(self, name: str) -> int:
        """The bytes that a member says it has."""
        return self._members[name].file_size

    def open(self, name: str) -> Member:
        """A member to be read piece by piece."""
        try:
            file = self._zip.open(self._members[name])
        except _DAMAGE as error:
            raise damaged(self.path, f"{name}: {error or type(error).__name__}") from None
        return Member(file, self.path, name, self.size(name))

    def check_sum(self, names) -> None:
        """Raises a UserError where these members together are larger than may be unpacked."""
        total = sum(self.size(name) for name in names)
        if total > self.limit:
            raise UserError(
                f"{self.path} has {self.num_bytes} bytes and says that it unpacks to {total}; "
                f"expected {self.limit} at most (a file of numbers compresses less)."
            )

    def read(self, name: str) -> bytes:
        """All of a member."""
        self.check_sum([name])
        with self.open(name) as member:
            return member.read(member.remaining)

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._zip.close()
        self._file.close()


def damaged(path: str, reason: str, expected: str = "") -> UserError:
    """The error for a file that is cut or changed."""
    expected = f"; expected {expected}" if expected else ""
    return UserError(f"{path} is truncated or damaged ({reason}){expected}.")
