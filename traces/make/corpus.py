"""Build the training and held-out text of tiny-m3 from pinned packages.

    python traces/make/corpus.py --output corpus

writes `train.jsonl` and `heldout.jsonl`, one `{"domain", "name", "text"}` per line, and
`manifest.json` with the bytes per domain. The same archives give the same bytes: nothing is
drawn at random, and a file's place (split and order) comes from a hash of its name alone.
Needs pip, and apt-get and dpkg-deb for the four Debian packages (no root).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from archives import members
from cleaning import documents
from sources import ARCHIVES, DOMAINS, SOURCES, Source

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

HELDOUT_EVERY = 12
MIN_BYTES = 400
# A long file is cut into documents of this size, all in its own split: one file must not
# dominate a domain's held-out figures, and a document must have a readable length.
MAX_BYTES = 24_000
MAX_PARTS = 20


@dataclass(frozen=True)
class Document:
    """A piece of text with the domain it comes from."""

    domain: str
    name: str
    text: str


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _parts(text: str) -> Iterator[str]:
    """The text cut at line ends into pieces of at most about MAX_BYTES."""
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if size + len(line.encode()) > MAX_BYTES and piece:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line.encode())
    yield "".join(piece)


def _is_text(text: str) -> bool:
    """False for stubs and for minified or tabulated files, which teach nothing but noise."""
    return len(text.encode()) >= MIN_BYTES and max(map(len, text.splitlines())) < 4_000


def _files(source: Source, cache: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of every file that the source's pattern selects, in hash order of names."""
    archive = ARCHIVES[source.archive]
    chosen, dropped = re.compile(source.pattern), re.compile(source.exclude)
    found = []
    for path, data in members(archive, cache):
        if chosen.search(path) and not dropped.search(path):
            for suffix, text in documents(source.cleaner, data):
                name = f"{archive.package}-{archive.version}{path}"
                found.append((f"{name}#{suffix}" if suffix else name, text.strip() + "\n"))
    yield from sorted(found, key=lambda file: _hash(file[0]))


def _collect(source: Source, cache: Path, seen: set[str]) -> Iterator[tuple[Split, Document]]:
    """The source's documents up to its cap, without any text that was seen before.

    Every twelfth file in the order of name hashes is held out, whole: a file is never in both
    splits, and every source with enough files is in both.
    """
    left = source.kilobytes * 1_000
    kept = 0
    for name, text in _files(source, cache):
        digest = hashlib.sha256(text.encode()).hexdigest()
        if digest in seen or not _is_text(text):
            continue
        seen.add(digest)
        kept += 1
        split: Split = "heldout" if kept % HELDOUT_EVERY == 3 else "train"
        for number, part in enumerate(_parts(text)):
            if left <= 0 or number >= MAX_PARTS:
                break
            left -= len(part.encode())
            yield split, Document(source.domain, f"{name}:{number}", part)


def build(cache: Path) -> dict[Split, list[Document]]:
    """Every document of every source, by split, in a fixed mixed order."""
    seen: set[str] = set()
    splits: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    for source in SOURCES:
        for split, document in _collect(source, cache, seen):
            splits[split].append(document)
    for split in SPLITS:
        splits[split].sort(key=lambda document: _hash("order:" + document.name))
    return splits


def summary(items: Iterable[Document]) -> dict[str, dict[str, int]]:
    """Documents and bytes of each domain."""
    bytes_, count = Counter[str](), Counter[str]()
    for item in items:
        bytes_[item.domain] += len(item.text.encode())
        count[item.domain] += 1
    return {name: {"documents": count[name], "bytes": bytes_[name]} for name in DOMAINS}


def write_split(folder: Path, split: Split, items: Iterable[Document]) -> None:
    """Write one split as JSON Lines."""
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def read_split(folder: Path, split: Split) -> list[Document]:
    """The documents of one split, in the order in which they were written."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def main() -> None:
    """Download, clean, split and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--cache", type=Path, help="folder of downloads (default OUTPUT/cache)")
    options = parser.parse_args()
    cache = options.cache or options.output / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    splits = build(cache)
    manifest: dict[str, object] = {"archives": [asdict(item) for item in ARCHIVES.values()]}
    for split, items in splits.items():
        write_split(options.output, split, items)
        manifest[split] = summary(items)
    (options.output / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps({split: manifest[split] for split in SPLITS}, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
