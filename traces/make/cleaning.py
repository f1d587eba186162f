"""Turn one archive file into the plain documents it holds."""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Callable, Iterator

from sources import Cleaner

Named = Iterator[tuple[str, str]]

_CHARSXP = 9
_MISSING = 0xFFFFFFFF


def _decode(data: bytes) -> str:
    """UTF-8 text, or nothing: a file in another encoding is left out rather than guessed."""
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\t", "    ")
    except UnicodeDecodeError:
        return ""


def _plain(data: bytes) -> Named:
    """The file as it is; zstd's amalgamated C file is cut back into the files it inlines."""
    text = _decode(data)
    parts = re.split(r"(?m)^/\*\*\*\* start inlining (.*?) \*\*\*\*/\n", text)
    yield "", parts[0]
    for number, (name, part) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        yield f"{number}:{name}", part


def _paragraphs(markup: str) -> str:
    """Paragraphs of the text between tags, one per line group, without layout white space."""
    text = re.sub(r"(?s)<(script|style|head|info)\b.*?</\1>", "", markup)
    text = re.sub(r"(?i)</?(p|div|h[1-6]|li|tr|pre|dt|dd|title|item|td|th)\b[^>]*>", "\n\n", text)
    text = html.unescape(re.sub(r"(?s)<[^>]*>", "", text))
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def _prose(data: bytes) -> Named:
    yield "", _paragraphs(_decode(data))


def _is_english(paragraph: str) -> bool:
    """True for a paragraph that the translators left in English."""
    words = paragraph.lower().split()
    return sum(w in {"the", "of", "and", "is"} for w in words) > sum(
        w in {"le", "la", "les", "de", "des", "et", "est"} for w in words
    )


def _french(data: bytes) -> Named:
    paragraphs = _paragraphs(_decode(data)).split("\n\n")
    yield "", "\n\n".join(part for part in paragraphs if not _is_english(part))


def _r_strings(data: bytes) -> Iterator[str]:
    """The strings of one serialized R character vector (XDR, as in a package's lazy data).

    Each string is a CHARSXP record: four bytes of flags (the last one is the type), four of
    length, then the bytes. The header before the first record holds none.
    """
    at = data.index(b"\x00\x04\x00\x09")
    while at + 8 <= len(data) and data[at + 3] == _CHARSXP:
        (length,) = struct.unpack_from(">I", data, at + 4)
        length = 0 if length == _MISSING else length
        yield data[at + 8 : at + 8 + length].decode("utf-8")
        at += 8 + length


def _austen(data: bytes) -> Named:
    """The chapters of each novel: an R lazy-data file is a row of (length, zlib stream)."""
    at = 0
    while at < len(data):
        stream = zlib.decompressobj()
        raw = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        lines = list(_r_strings(raw))
        chapters = re.split(r"(?mi)^(?=chapter [0-9ivxl]+)", "\n".join(lines))
        for number, chapter in enumerate(chapters):
            yield f"{lines[0].title()}:{number}", chapter


_CLEANERS: dict[Cleaner, Callable[[bytes], Named]] = {
    "plain": _plain,
    "prose": _prose,
    "french": _french,
    "austen": _austen,
}


def documents(cleaner: Cleaner, data: bytes) -> Named:
    """(suffix of the name, text) of each document in a file; the suffix is often empty."""
    return _CLEANERS[cleaner](data)
