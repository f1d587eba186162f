"""Download the pinned archives and walk the files inside them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sources import Archive


def _command(archive: Archive) -> list[str]:
    """The ordinary package client call that puts the archive into the current folder."""
    if archive.kind == "deb":
        return ["apt-get", "download", f"{archive.package}={archive.version}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    if archive.kind == "sdist":
        command += ["--no-binary", archive.package]
    else:
        # A fixed platform, so that the same wheel is taken whatever machine this runs on.
        command += ["--only-binary", ":all:", "--python-version", "3.11"]
        command += ["--platform", "manylinux2014_x86_64"]
    return [*command, f"{archive.package}=={archive.version}"]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(archive: Archive, cache: Path) -> Path:
    """The archive's file in `cache`, downloaded if it is not there, checked by its SHA-256."""
    folder = cache / f"{archive.package}-{archive.version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        print(f"download {archive.package} {archive.version}", file=sys.stderr)
        subprocess.run(_command(archive), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.iterdir()
    if _digest(path) != archive.sha256:
        raise SystemExit(f"{path.name}: SHA-256 differs from the pinned {archive.sha256}")
    return path


def _tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if not name.endswith("/"):
                yield name, wheel.read(name)


def _deb_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(path), folder], check=True)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file() and not file.is_symlink():
                yield file.relative_to(folder).as_posix(), file.read_bytes()


def members(archive: Archive, cache: Path) -> list[tuple[str, bytes]]:
    """(name, bytes) of every regular file of the archive; names are relative, with slashes."""
    walk = {"sdist": _tar_members, "wheel": _zip_members, "deb": _deb_members}[archive.kind]
    return [(f"/{name}", data) for name, data in walk(download(archive, cache))]
