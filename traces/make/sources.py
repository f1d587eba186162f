"""What tiny-m3 is trained on: one row per archive and kind of file, with version and licence.

Every archive is pinned by version and by SHA-256, so the corpus is the same bytes wherever it is
built. Only the text of these archives is read; none of it is shipped with moeprof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sdist", "wheel", "deb"]
Cleaner = Literal["plain", "prose", "french", "austen"]

_MINIFIED = r"\.min\.js|/main\.|-min\.|MathJax"

DOMAINS = ("python", "c", "javascript", "english", "french", "markup", "data")


@dataclass(frozen=True)
class Archive:
    """One pinned download: a PyPI sdist, a PyPI wheel or a Debian package."""

    kind: Kind
    package: str
    version: str
    licence: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Which files of an archive belong to a domain, and how many bytes of them at most."""

    domain: str
    archive: str
    pattern: str
    kilobytes: int
    cleaner: Cleaner = "plain"
    exclude: str = r"(?!)"


ARCHIVES = {
    archive.package: archive
    for archive in (
        Archive(
            "sdist",
            "django",
            "5.2.8",
            "BSD-3-Clause",
            "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f",
        ),
        Archive(
            "wheel",
            "sympy",
            "1.14.0",
            "BSD-3-Clause",
            "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        ),
        Archive(
            "wheel",
            "networkx",
            "3.5",
            "BSD-3-Clause",
            "0030d386a9a06dee3565298b4a734b68589749a544acbb6c412dc9e2489ec6ec",
        ),
        Archive(
            "sdist",
            "zstandard",
            "0.25.0",
            "BSD-3-Clause",
            "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
        ),
        Archive(
            "sdist",
            "brotli",
            "1.1.0",
            "MIT",
            "81de08ac11bcb85841e440c13611c00b67d3bf82698314928d0b676362546724",
        ),
        Archive(
            "sdist",
            "lz4",
            "4.4.4",
            "BSD-3-Clause (its lz4 C library: BSD-2-Clause)",
            "070fd0627ec4393011251a094e08ed9fdcc78cb4e7ab28f507638eee4e39abda",
        ),
        Archive(
            "sdist",
            "pycryptodome",
            "3.23.0",
            "BSD-2-Clause and public domain",
            "447700a657182d60338bab09fdb27518f8856aecd80ae4c6bdddb67ff5da44ef",
        ),
        Archive(
            "wheel",
            "xstatic-angular",
            "1.8.2.3",
            "MIT",
            "a192a1c392257610edadfdccc72cf259631e964ee2fe631fd75a92b68e01989f",
        ),
        Archive(
            "wheel",
            "nbclassic",
            "1.1.0",
            "BSD-3-Clause (bundled CodeMirror: MIT)",
            "8c0fd6e36e320a18657ff44ed96c3a400f17a903a3744fc322303a515778f2ba",
        ),
        Archive(
            "sdist",
            "docutils",
            "0.21.2",
            "public domain, parts BSD-2-Clause, PSF",
            "3a6b18732edf182daa3cd12775bbb338cf5691468f91eeeb109deff6ebfa986f",
        ),
        Archive(
            "sdist",
            "xmlschema",
            "4.1.0",
            "MIT",
            "88ac771cf94d5fc6bbd1a763db8c157f3d683ad23120b0d0b8c46fe4537f2adf",
        ),
        Archive(
            "wheel",
            "cfn-lint",
            "1.58.0",
            "MIT-0",
            "9d9f06043160756a6158f5c3f92a44ce38254b1c578127461608305bc8262987",
        ),
        Archive(
            "wheel",
            "pycountry",
            "24.6.1",
            "LGPL-2.1-only",
            "f1a4fb391cd7214f8eefd39556d740adcc233c778a27f8942c8dca351d6ce06f",
        ),
        Archive(
            "wheel",
            "statsmodels",
            "0.14.5",
            "BSD-3-Clause",
            "f402fc793458dd6d96e099acb44cd1de1428565bf7ef3030878a8daff091f08a",
        ),
        Archive(
            "deb",
            "r-cran-janeaustenr",
            "1.0.0-1",
            "MIT (the novels: public domain)",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        ),
        Archive(
            "deb",
            "gnome-user-docs",
            "43.0-2",
            "CC-BY-SA-3.0",
            "0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
        ),
        Archive(
            "deb",
            "debian-handbook",
            "11.20220922",
            "GPL-2.0-or-later or CC-BY-SA-3.0",
            "3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
        ),
        Archive(
            "deb",
            "debian-faq-fr",
            "11.1",
            "the FAQ's own copyleft notice (GNU documentation style)",
            "e83cbcc28106fc35f6665a6b0c54c2bd66db481de409764ce35b715baca510df",
        ),
    )
}

SOURCES = (
    Source("python", "django", r"/(django|tests)/.*\.py$", 1300, exclude=r"/locale/|__init__"),
    Source("python", "sympy", r"\.py$", 800, exclude=r"__init__|_generated|benchmarks"),
    Source("python", "networkx", r"\.py$", 700, exclude=r"__init__"),
    Source("c", "zstandard", r"\.[ch]$", 1300),
    Source("c", "brotli", r"\.[ch]$", 700, exclude=r"dictionary"),
    Source("c", "lz4", r"\.[ch]$", 400),
    Source("c", "pycryptodome", r"/src/.*\.[ch]$", 900, exclude=r"_table\.|test_vectors"),
    Source("javascript", "django", r"\.js$", 700, exclude=r"\.min\.js|/i18n/"),
    Source("javascript", "xstatic-angular", r"\.js$", 700, exclude=r"\.min\.js|/i18n/"),
    Source("javascript", "nbclassic", r"/(codemirror|js|base)/.*\.js$", 1600, exclude=_MINIFIED),
    Source("english", "r-cran-janeaustenr", r"/Rdata\.rdb$", 2200, "austen"),
    Source("english", "gnome-user-docs", r"/help/C/.*\.page$", 600, "prose"),
    Source("french", "debian-handbook", r"/html/fr-FR/[^/]*\.html$", 1600, "french"),
    Source("french", "gnome-user-docs", r"/help/fr/.*\.page$", 800, "prose"),
    Source("french", "debian-faq-fr", r"\.fr\.html$", 300, "french"),
    Source("markup", "django", r"/docs/.*\.txt$", 900),
    Source("markup", "django", r"/(django|tests)/.*\.html$", 200),
    Source("markup", "docutils", r"/docs/.*\.(txt|rst)$", 500),
    Source("markup", "docutils", r"\.html$", 400, exclude=r"math"),
    Source("markup", "debian-handbook", r"/html/en-US/sect\.[^/]*\.html$", 800),
    Source("data", "cfn-lint", r"\.json$", 1200),
    Source("data", "pycountry", r"/databases/.*\.json$", 300),
    Source("data", "statsmodels", r"\.csv$", 500),
    Source("data", "xmlschema", r"\.(xsd|xml|wsdl)$", 500),
)
