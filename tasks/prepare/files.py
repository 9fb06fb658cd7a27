"""Finding, fetching and verifying the four files of a source in MNIST's format."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    listed = [
        Path(part).expanduser() for part in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if part
    ]
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
    for path in filter(Path.is_file, paths):
        content = _read(path)
        # A folder that bears no source's name may hold another source's files, under the same names.
        if path.parent.name != source.name and _is_of_another_source(content, source):
            continue
        return Found(stem, str(path), _verified(content, stem, source, str(path)))
    return None


def _from_address(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    for stem in stems:
        url = f"{source.address}{_names(stem)[0]}"
        try:
            packed = _download(url)
            content = _verified(_unpacked(packed, url), stem, source, url)
        except (OSError, http.client.HTTPException, DecantError) as error:
            raise Unavailable(f"{url}: {error}") from None
        _keep(packed, stem, source)
        yield Found(stem, url, content)


def _download(url: str) -> bytes:
    """Return what an address answers, with a progress bar where a person looks."""
    content = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rpartition("/")[2], disable=None) as bar:
            while block := answer.read(1 << 16):
                content += block
                bar.update(len(block))
    return bytes(content)


def _from_apt(source: IdxSource, stems: Sequence[str]) -> Iterator[Found]:
    """Fetch Debian's package and unpack it, which needs neither root nor lists of packages that are there."""
    if source.package is None:
        return  # `_from_debian` has given the reason
    absent = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if absent:
        raise Unavailable(f"apt-get download {source.package}: no {' and no '.join(absent)} on this machine")
    with tempfile.TemporaryDirectory() as name:
        tree = _unpacked_package(source.package, Path(name))
        try:
            for file in _from_folders(
                [tree / DEBIAN.relative_to("/") / source.name], source, stems, "apt-get"
            ):
                _keep(Path(file.origin).read_bytes(), file.stem, source)
                yield Found(file.stem, f"{source.package}: {Path(file.origin).name}", file.content)
        except DecantError as error:
            raise Unavailable(f"apt-get download {source.package}: {error}") from None


def _unpacked_package(package: str, folder: Path) -> Path:
    """Fetch a package with apt's state inside `folder`, unpack it, return where it was unpacked."""
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
    _call(["dpkg-deb", "-x", archives[0].name, "tree"], folder, package)
    return folder / "tree"


def _call(command: Sequence[str], folder: Path, package: str) -> None:
    """Run a command in `folder`, with English messages.

    Raises:
        Unavailable: It failed; with the last line of what it said.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    action = command[-1] if command[0] == "apt-get" else command[1]
    step = f"apt-get download {package}: {command[0]} {action}"
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


def _read(path: Path) -> bytes:
    try:
        return _unpacked(path.read_bytes(), str(path))
    except OSError as error:
        raise DecantError(f"Cannot read {path}: {error.strerror}; mend or remove it") from None


def _unpacked(content: bytes, origin: str) -> bytes:
    """Return the bytes decompressed; some tools unpack a .gz and keep its name, so the content decides."""
    if not content.startswith(GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except EOFError:
        raise DecantError(
            f"{origin} is cut off: its {len(content)} bytes end before the compressed data do; "
            "replace it with a whole copy, or remove it"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DecantError(f"{origin} cannot be decompressed ({error}); replace or remove it") from None


def _verified(content: bytes, stem: str, source: IdxSource, origin: str) -> bytes:
    """Return `content`.

    Raises:
        DecantError: It has another sum than the source's entry says.
    """
    found, expected = hashlib.sha256(content).hexdigest(), source.sums[stem]
    if found == expected:
        return content
    raise DecantError(
        f"{origin} is not the {stem} of {source.name}: the SHA-256 sum of its {len(content)} bytes "
        f"(decompressed) is {found}, not {expected}; replace or remove it"
    )


def _is_of_another_source(content: bytes, source: IdxSource) -> bool:
    known = [entry for entry in SOURCES.values() if isinstance(entry, IdxSource)]
    found = hashlib.sha256(content).hexdigest()
    return found not in source.sums.values() and any(found in entry.sums.values() for entry in known)


def _keep(packed: bytes, stem: str, source: IdxSource) -> None:
    """Write a verified file into data/raw/<source>, where the next run looks first."""
    with replacing(RAW / source.name / _names(stem)[0]) as path:
        path.write_bytes(packed)
