"""Record tiny-m3 on held-out text: the recording that ships in traces/.

    python traces/make/record.py --corpus corpus --output traces/tiny-m3.moetrace

Takes the same number of prompts of each domain, up to six windows of 190 tokens from each
held-out document, and samples 64 tokens after each, so that a request stays within the 256 tokens
that tiny-m3 was trained on. Prints how the routing differs by domain beside a shuffle null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from corpus import Document, read_split
from sources import DOMAINS
from trimming import Count, token_counter, trim

from moeprof.analysis import analyze_specialization
from moeprof.capture import Prompt, capture_transformers
from moeprof.demo.run import MODEL
from moeprof.trace import open_trace

PER_DOMAIN = 64
WINDOWS_PER_DOCUMENT = 6
PROMPT_TOKENS = 190
NEW_TOKENS = 64


def windows(documents: list[Document], count: Count) -> Iterator[str]:
    """Evenly spaced windows of one domain's documents: the first of each, then the second, ..."""
    for number in range(WINDOWS_PER_DOCUMENT):
        for document in documents:
            start = len(document.text) * number // WINDOWS_PER_DOCUMENT
            stop = len(document.text) * (number + 1) // WINDOWS_PER_DOCUMENT
            text = trim(document.text[start:stop], PROMPT_TOKENS, count)
            if text is not None:
                yield text


def prompts(documents: list[Document]) -> list[Prompt]:
    """As many prompts of each domain, domains in turn, as a mixed workload would come."""
    by_domain: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_domain[document.domain].append(document)
    count = token_counter()
    chosen = [list(islice(windows(by_domain[name], count), PER_DOMAIN)) for name in DOMAINS]
    rounds = zip(*chosen, strict=True)
    return [
        Prompt(text, domain)
        for texts in rounds
        for domain, text in zip(DOMAINS, texts, strict=True)
    ]


def main() -> int:
    """Record, then test whether domains differ beyond chance; 3 if they do not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    captured = capture_transformers(
        MODEL,
        prompts(read_split(arguments.corpus, "heldout")),
        arguments.output,
        batch_size=len(DOMAINS) * 2,
        max_new_tokens=NEW_TOKENS,
        dtype="float32",
        threads=1,
        sample=True,
        force=arguments.force,
    )
    result = analyze_specialization(open_trace(arguments.output))
    print(json.dumps({**captured.to_dict(), **result.to_dict()}, indent=1))
    return 0 if result.specialization > result.null_p95 else 3


if __name__ == "__main__":
    sys.exit(main())
