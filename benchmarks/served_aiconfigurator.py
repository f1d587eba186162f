"""AIConfigurator's errors on the served rows and on MiniMax-M3's, as it is shipped.

    python benchmarks/served_aiconfigurator.py [--figure FILE.svg]

Reads data/aiconfigurator_served.csv (benchmarks/aiconfigurator_predict.py makes it) and prints
Markdown: by system, model and engine; with the checkpoint's number formats in place of the row's;
rows without an answer by reason.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.served.peer import AIConfigurator, refusals
from benchmarks.served.rows import ServedRow, load_rows, moe_rows, without_copies
from benchmarks.served.scatter import scatter
from benchmarks.served.scores import Score, grouped, score_tpot, score_ttft
from benchmarks.served.tables import markdown
from benchmarks.served.trial import Judged

HEAD = ("", "rows", "answered", "TPOT median", "mean", "bias", "Spearman", "TTFT median", "mean")


def judge(rows: Sequence[ServedRow], *asked: str) -> list[Judged]:
    """Rows beside AIConfigurator's answers."""
    said = AIConfigurator(*asked).predict(rows)
    return [Judged("as shipped", row, each) for row, each in zip(rows, said, strict=True)]


def line(name: str, judged: Sequence[Judged]) -> tuple[str, ...]:
    """One line of the table."""
    tpot, ttft = score_tpot(judged), score_ttft(judged)
    times = (*_percents(tpot, "median", "mean", "bias"), f"{tpot.spearman:.3f}")
    return (name, str(len(judged)), str(tpot.rows), *times, *_percents(ttft, "median", "mean"))


def lines(judged: Sequence[Judged], group_of: Callable[[Judged], str]) -> list[tuple[str, ...]]:
    """A line for each group."""
    return [line(name, rows) for name, rows in grouped(judged, group_of).items()]


def reasons(rows: Sequence[ServedRow]) -> str:
    """How many rows have no answer, by what AIConfigurator says of them."""
    said = [refusals()[row.id].split(" with the")[0] for row in rows if row.id in refusals()]
    counts = Counter(re.sub(r"the model '\S+'", "the model", text) for text in said)
    return markdown(("reason", "rows"), [(why, str(n)) for why, n in counts.most_common()])


def main() -> None:
    """Print the tables, and draw the rows where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path)
    figure = parser.parse_args().figure
    rows, m3 = load_rows(), load_rows("m3_serving")
    moe, dense = moe_rows(rows), [row for row in rows if row.dense]
    shipped = judge(moe)
    table = [line("MoE rows", shipped), line("each run once", judge(without_copies(moe)))]
    table += [line("formats of the checkpoint", judge(moe, "checkpoint"))]
    for group_of in (_hardware, _family, _engine):
        table += lines(shipped, group_of)
    table += [line("Llama 3.1 70B", judge(dense))]
    table += [line("the same, formats of the checkpoint", judge(dense, "checkpoint"))]
    table += [line("MiniMax-M3, gaps filled", judge(m3, "row", "hybrid"))]
    print(markdown(HEAD, table))
    print(f"\n{reasons(rows)}")
    if figure:
        scatter(shipped, figure, "AIConfigurator 0.12.0, as shipped")


def _percents(score: Score, *names: str) -> list[str]:
    return [f"{100 * getattr(score, name):.1f} %" for name in names]


def _hardware(each: Judged) -> str:
    return each.row.hardware


def _family(each: Judged) -> str:
    return each.row.family


def _engine(each: Judged) -> str:
    return each.row.engine


if __name__ == "__main__":
    main()
