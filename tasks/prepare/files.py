"""Finding, fetching and verifying the four files of a source in MNIST's format.

Nothing is read or unpacked beyond the size that the source's entry states, whatever a file or a server says.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from decant.errors import DecantError
from decant.outputs import replacing
from tasks.prepare.sources import SOURCES, STEMS, IdxSource

RAW = Path("data/raw")
FOLDERS_VARIABLE = "DECANT_DATASETS"
DEBIAN = Path("/usr/share/datasets")
TIMEOUT = 20.0
"""Seconds without an answer after which the public address is given up."""
APT_TIMEOUT = 300.0
"""Seconds that one call of apt-get may take."""
GZIP_MAGIC = b"\x1f\x8b"
AROUND = 1 << 20
"""Bytes that packing may add to a file, and a package to its files: headers, pages of documentation."""


class Unavailable(Exception):
    """One way to the files does not lead there; says which way and why."""


@dataclass(frozen=True)
class Found:
    """A verified file.

    Attributes:
        stem: Which of `STEMS` it is.
        origin: Where it was found, for messages.
        content: Its bytes, decompressed.
    """

    stem: str
    origin: str
    content: bytes


def find(source: IdxSource) -> dict[str, Found]:
    """Return the four files, each from the first way that has it.

    The ways: data/raw; the folders of DECANT_DATASETS; the installed Debian package; the public address;
    apt-get without root. What the last two fetch is kept in data/raw/<source>.

    Raises:
        DecantError: A file lies there but is broken or has a wrong sum; or no way has a file, with the
            reason of each.
    """
    found: dict[str, Found] = {}
    reasons = []
    for way in (_from_raw, _from_variable, _from_debian, _from_address, _from_apt):
        try:
            for file in way(source, [stem for stem in STEMS if stem not in found]):
                found[file.stem] = file
        except Unavailable as reason:
            reasons.append(f"  - {reason}")
        if len(found) == len(STEMS):
            return found
    missing = ", ".join(stem for stem in STEMS if stem not in found)
    raise DecantError(
        f"No {missing} of {source.name}. All ways in were tried:\n" + "\n".join(reasons) + "\n"
        f"Open one of them, or put the files of {source.address} into {RAW / source.name}, and run again; "
        "data/README.md says more"
    )


def _from_raw(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    yield from _from_folders([RAW / source.name, RAW], source, stems, str(RAW))


def _from_variable(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    parts = os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep)
    try:
        listed = [Path(part).expanduser() for part in parts if part]
    except RuntimeError as error:  # ~name of nobody
        raise Unavailable(f"{FOLDERS_VARIABLE}: {error}") from None
    if not listed:
        raise Unavailable(f"{FOLDERS_VARIABLE} is not set; it lists folders, separated by {os.pathsep!r}")
    folders = [folder for place in listed for folder in (place / source.name, place)]
    yield from _from_folders(folders, source, stems, FOLDERS_VARIABLE)


def _from_debian(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    if source.package is None:
        raise Unavailable(f"Debian has no package of {source.name}")
    way = f"Debian's package {source.package} (`apt install {source.package}`)"
    yield from _from_folders([DEBIAN / source.name], source, stems, way)


def _from_folders(
    folders: Sequence[Path], source: IdxSource, stems: Sequence[str], way: str
) -> Iterator[Found]:
    """Yield each file from the first folder that has it.

    Raises:
        Unavailable: Some file is in none of them.
        DecantError: A file is there and is not what it should be.
    """
    missing = []
    for stem in stems:
        file = _in_folders(folders, source, stem)
        if file:
            yield file
        else:
            missing.append(stem)
    if missing:
        places = " or ".join(str(folder) for folder in folders)
        raise Unavailable(f"{way}: no {', '.join(missing)} of {source.name} in {places}")


def _in_folders(folders: Sequence[Path], source: IdxSource, stem: str) -> Found | None:
    paths = [folder / name for folder in folders for name in _names(stem)]
    for path in filter(_is_there, paths):
        # A folder that bears no source's name may hold another source's files, under the same names.
        others = _idx_sources() if path.parent.name != source.name else []
        content = _read(path, max(entry.sizes[stem] for entry in (source, *others)))
        if others and _is_of_another_source(content, source):
            continue
        return Found(stem, str(path), _verified(content, stem, source, str(path)))
    return None


def _from_address(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    for stem in stems:
        url = f"{source.address}{_names(stem)[0]}"
        try:
            found = _kept(_download(url, source.sizes[stem] + AROUND), stem, source, url)
        except (OSError, ValueError, http.client.HTTPException, DecantError) as error:
            raise Unavailable(f"{url}: {error}") from None
        yield found


def _download(url: str, most: int) -> bytes:
    """Return what an address answers, with a progress bar where a person looks.

    Raises:
        DecantError: It answers more than `most` bytes.
    """
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        bounded, name = _Bounded(answer, most, url), url.rpartition("/")[2]
        with tqdm(total=answer.length, unit="B", unit_scale=True, desc=name, disable=None) as bar:
            while block := bounded.read(1 << 16):
                content += block
                bar.update(len(block))
    return bytes(content)


class _Bounded:
    """A stream that is read no further than it may be long.

    Args:
        stream: What is read.
        most: How many bytes it may have.
        origin: What to call it in the error.
    """

    def __init__(self, stream: IO[bytes], most: int, origin: str) -> None:
        self._stream, self._left = stream, most
        self._error = f"{origin} has more than {most} bytes, which it cannot have; replace or remove it"

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size` of them.

        Raises:
            DecantError: There are more than the stream may have.
        """
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise DecantError(self._error)
        return content


def _from_apt(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    """Fetch Debian's package and unpack it, which needs neither root nor lists of packages that are there."""
    if source.package is None:
        return  # `_from_debian` has given the reason
    absent = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if absent:
        raise Unavailable(f"apt-get download {source.package}: no {' and no '.join(absent)} on this machine")
    way = f"apt-get download {source.package}"
    with tempfile.TemporaryDirectory() as name:
        package = _fetched_package(source.package, Path(name))
        try:
            packed = _members(package, source, stems)
            for stem in filter(packed.__contains__, stems):
                yield _kept(packed[stem], stem, source, f"{source.package}: {stem}")
        except (OSError, EOFError, tarfile.TarError, DecantError) as error:
            raise Unavailable(f"{way}: {error}") from None
    if missing := [stem for stem in stems if stem not in packed]:
        raise Unavailable(f"{way}: no {', '.join(missing)} of {source.name} in it")


def _members(package: Path, source: IdxSource, stems: Sequence[str]) -> dict[str, bytes]:
    """Return the wanted files of a Debian package by stem, packed as they are; no other file is unpacked."""
    folder = DEBIAN.relative_to("/") / source.name
    wanted = {str(folder / name): stem for stem in stems for name in _names(stem)}
    found = {}
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking:
        assert unpacking.stdout is not None
        stream = _Bounded(unpacking.stdout, sum(source.sizes.values()) + len(STEMS) * AROUND, package.name)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]  # it only reads
                for member in archive:
                    stem = wanted.get(member.name.removeprefix("./"))
                    if stem is not None and (file := archive.extractfile(member)) is not None:
                        found[stem] = file.read(source.sizes[stem] + AROUND)
        finally:
            unpacking.kill()  # at the end of the archive, or where it is read no further
    return found


def _fetched_package(package: str, folder: Path) -> Path:
    """Fetch a package with apt's state inside `folder`, return its file."""
    # apt does not make these two itself when it is given other folders than its own.
    for partial in ("lists/partial", "cache/archives/partial"):
        (folder / partial).mkdir(parents=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # as root it would change to a user who may not enter `folder`
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": int(TIMEOUT),
        "Acquire::https::Timeout": int(TIMEOUT),
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _call(["apt-get", *options, "update"], folder, package)
    _call(["apt-get", *options, "download", package], folder, package)
    archives = sorted(folder.glob("*.deb"))
    if not archives:
        raise Unavailable(f"apt-get download {package}: it left no package")
    return archives[0]


def _call(command: Sequence[str], folder: Path, package: str) -> None:
    """Run a command in `folder`, with English messages.

    Raises:
        Unavailable: It failed; with the last line of what it said.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    step = f"apt-get download {package}: {command[0]} {'download' if package in command else command[-1]}"
    try:
        subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=APT_TIMEOUT,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        said = error.stdout.strip().splitlines() or ["nothing said"]
        raise Unavailable(f"{step} exited {error.returncode}: {said[-1]}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{step} took more than {APT_TIMEOUT:.0f} s") from None


def _names(stem: str) -> list[str]:
    """Return the names that a file goes by, the public one first."""
    kind = "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"
    return [f"{stem}{mark}{kind}{end}" for mark in "-." for end in (".gz", "")]


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be entered: reading says so
        return True


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return _unpacked(file, most, str(path))
    except OSError as error:
        raise DecantError(f"Cannot read {path}: {error.strerror}; mend or remove it") from None


def _unpacked(file: IO[bytes], most: int, origin: str) -> bytes:
    """Return the bytes decompressed, no more than `most` and one: who has that many is too long.

    Some tools unpack a .gz and keep its name, so the content decides.

    Raises:
        DecantError: The compressed bytes are cut off, damaged, or more than `most` bytes can take.
    """
    packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    if not packed:
        return file.read(most + 1)
    try:
        with gzip.GzipFile(fileobj=_Bounded(file, most + AROUND, origin)) as unpacking:  # type: ignore[call-overload]  # it only reads
            return bytes(unpacking.read(most + 1))
    except EOFError:
        raise DecantError(
            f"{origin} is cut off: it ends before the compressed data do; replace it with a whole copy, or "
            "remove it"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DecantError(f"{origin} cannot be decompressed ({error}); replace or remove it") from None


def _verified(content: bytes, stem: str, source: IdxSource, origin: str) -> bytes:
    """Return `content`.

    Raises:
        DecantError: It has another size or sum than the source's entry says.
    """
    if len(content) > source.sizes[stem]:
        raise DecantError(
            f"{origin} is not the {stem} of {source.name}: it has more than the {source.sizes[stem]} bytes "
            "(decompressed) of those; replace or remove it"
        )
    found, expected = hashlib.sha256(content).hexdigest(), source.sums[stem]
    if found == expected:
        return content
    raise DecantError(
        f"{origin} is not the {stem} of {source.name}: the SHA-256 sum of its {len(content)} bytes "
        f"(decompressed) is {found}, not {expected}; replace or remove it"
    )


def _is_of_another_source(content: bytes, source: IdxSource) -> bool:
    found = hashlib.sha256(content).hexdigest()
    return found not in source.sums.values() and any(found in entry.sums.values() for entry in _idx_sources())


def _idx_sources() -> list[IdxSource]:
    return [entry for entry in SOURCES.values() if isinstance(entry, IdxSource)]


def _kept(packed: bytes, stem: str, source: IdxSource, origin: str) -> Found:
    """Return a file that was fetched, verified, and keep it in data/raw/<source>, the first place to look.

    Raises:
        DecantError: It is not what it should be.
    """
    content = _unpacked(io.BytesIO(packed), source.sizes[stem], origin)
    found = Found(stem, origin, _verified(content, stem, source, origin))
    with replacing(RAW / source.name / _names(stem)[0]) as path:
        path.write_bytes(packed)
    return found
