"""Writes so that after a crash at any moment the disk holds the old or the new, whole; and locks folders.

The lock is the system's own (`flock`): it is gone with the process that holds it, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no flock: there a folder is not locked
    fcntl = None

LOCK = ".lock"
"""The file in a folder whose lock a writer holds; it is empty and stays."""

WRITE_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
"""The flags that make a file, or empty one that is there, for writing."""

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
"""The flags that make a file, or open one that is there, to write at its end."""

OTHERS_WRITE = 0o022
"""The permissions of a folder by which a group or all others may write to it."""

MANY = 64
"""The number of files above which one request for the whole file system is quicker than one for each file."""


# --- files -----------------------------------------------------------------------------------------------------------


def commit(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces the content of `path` in one step, and returns once it is on the disk.

    The bytes go to a file beside it, `.<name>.tmp`, which then takes its name. A crash may leave that file; the next
    commit overwrites it. That name is always the same, so there must be one writer at a time, such as the holder of a lock.

    Args:
        path: of the file.
        data: its new content.
        mode: its permissions, as far as the process's mask leaves them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    # The bytes must be on the disk before they get the name, or a power cut could leave the name with no bytes. And the name is
    # an entry of the folder, which is a file of its own and has to be written, too.
    write(temporary, data, mode=mode)
    os.replace(temporary, path)
    sync_folder(path.parent)


def commit_private(path: Path, data: bytes) -> None:
    """Does what `commit` does, for a file that its owner alone may read, in a folder that its owner alone may open.

    Raises:
        OSError: for a disk that is full or cannot be written; the old content stands, and nothing half written stays behind.
    """
    private_folder(path.parent)
    try:
        commit(path, data, mode=0o600)
    except OSError:
        with suppress(OSError):
            path.with_name(f".{path.name}.tmp").unlink()  # on a full disk its bytes are needed
        raise


def private_folder(folder: Path) -> None:
    """Makes a folder that its owner alone may open; one that is there already keeps its permissions.

    Raises:
        PermissionError: for a folder that another user owns or may write to, who could put a link or a socket into it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):  # Windows has other permissions
        return
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & OTHERS_WRITE:
        raise PermissionError(
            f"other users may write to {folder}: make it its owner's alone (chmod 700), or name another folder"
        )


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Writes a file that nobody reads yet; its bytes are on the disk before this returns."""
    handle = os.open(path, WRITE_ANEW, mode)
    try:
        write_to(handle, path, data)
    finally:
        os.close(handle)


def write_to(handle: int, path: Path, data: bytes) -> None:
    """Writes at the place where an open file stands; the bytes are on the disk before this returns.

    Args:
        handle: of the file.
        path: of the same file, which an error names.
        data: all of which is written, however little the system takes at once.

    Raises:
        OSError: for a disk that is full or cannot be written.
    """
    with _naming(path):
        _write_all(handle, data)
        os.fsync(handle)


def append_line(path: Path, text: str) -> None:
    """Adds a line to the end of a file, which is made if it is not there; the line is on the disk when this returns.

    Raises:
        OSError: for a disk that is full or cannot be written. A part of the line may be in the file then.
    """
    handle = os.open(path, APPEND, 0o666)
    try:
        write_to(handle, path, f"{text}\n".encode())
    finally:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Gives an error of an open file, which the system gives no name, that of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # without a number its text is the message, and would be lost
            error.filename = str(path)
        raise


def write_all(folder: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Writes files of one folder that nobody reads yet; all are on the disk before this returns.

    A disk writes quickly and confirms slowly. So all files are written first and confirmed afterwards; more than `MANY` of them
    by one request for the whole file system, where there is such a call.

    Args:
        folder: made if it is not there.
        contents: names and bytes, asked for one by one, so that only one is in memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, data in contents:
        paths.append(folder / name)
        handle = os.open(paths[-1], WRITE_ANEW, 0o644)
        try:
            with _naming(paths[-1]):
                _write_all(handle, data)
        finally:
            os.close(handle)
    if not (len(paths) > MANY and _sync_file_system(folder)):
        for path in paths:
            sync_file(path)
    if paths:
        sync_folder(folder)


def sync_file(path: Path) -> None:
    """Makes the bytes durable that somebody has written to a file."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))  # Windows confirms only what was opened for writing
    try:
        with _naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, on systems where a folder can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    """Writes all of `data`. One `os.write` may take only a part of it, and never takes more than 2 GiB."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]


# --- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """Gives a draft folder to write to; it takes the name `folder` when the block ends well, and else is removed.

    The draft is `.<name>.draft` beside it. A crash may leave it; the next call begins it anew. `folder` must not exist, or be
    empty.
    """
    folder = folder.resolve()
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        sync_tree(draft)
        os.replace(draft, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Makes all files in a folder durable that others have written."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def replace_folder(draft: Path, folder: Path) -> None:
    """Puts a finished draft in the place of a folder, in one step; what was there is removed. A link to a folder stays."""
    folder = folder.resolve()
    sync_folder(draft)
    if folder.is_dir():
        swap(draft, folder)
        shutil.rmtree(draft)
    else:
        os.replace(draft, folder)
    sync_folder(folder.parent)


def swap(one: Path, other: Path) -> None:
    """Exchanges two names in one folder, in one step where the system can.

    Elsewhere there are three steps, and a crash between them leaves `other` under the name `.<other>.swap`.
    """
    if _exchange(os.fsencode(one), os.fsencode(other)):
        return
    spare = spare_of(other)
    os.replace(other, spare)
    os.replace(one, other)
    os.replace(spare, one)


def spare_of(path: Path) -> Path:
    """Returns the name that `path` gets for a moment where names cannot be exchanged in one step."""
    return path.with_name(f".{path.name}.swap")


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _exchange(one: bytes, other: bytes) -> bool:
    """Exchanges two names by one call to the system; returns False if there is no such call or the file system refuses."""
    call = _system_call("renamex_np" if sys.platform == "darwin" else "renameat2")
    if call is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE, as RENAME_SWAP is 2, too
    return call(one, other, exchange) == 0 if sys.platform == "darwin" else call(here, one, here, other, exchange) == 0


def _sync_file_system(folder: Path) -> bool:
    """Makes all that was written to a folder's file system durable by one call; returns False if there is no such call."""
    call = _system_call("syncfs")
    if call is None:
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        # After an error the caller confirms the files one by one, and so finds out which of them cannot be written.
        return call(handle) == 0
    finally:
        os.close(handle)


def _system_call(name: str) -> Callable[..., int] | None:
    """Returns a function of the C library; None if it has none of this name."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows
        return None


# --- locks -----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps other writers out of a folder while the block runs; makes the folder if it is not there.

    Raises:
        BlockingIOError: if another writer holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = _lock(folder / LOCK)
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def appending(path: Path) -> Generator[int]:
    """Opens a file that several processes add to, and waits until no other writer has it; makes it if it is not there.

    The handle reads and writes. What is written must be made durable in the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    """Returns the handle of a lock file that is locked; closing the handle unlocks it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(handle)
        except BlockingIOError:
            os.close(handle)
            raise BlockingIOError(
                f"another process is writing to {path.parent}: wait until it has ended, or give another folder"
            ) from None
        # Its last holder may have removed the file after we opened it: then our lock is on a file without a name, and somebody
        # else may hold the new one.
        if _is_still(handle, path):
            return handle
        os.close(handle)


def _flock(handle: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks: an unlocked run is better than none
        return


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
