"""The tables of published points say what their sources say, and derive no more than they state."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.served.rows import DATA, load_rows

SHARED = Path(__file__).parents[3] / "shared" / "data"
TABLES = ("m3_serving", "throughput_points")
FACTS = ("ttft_ms", "tpot_ms", "output_tok_s", "total_tok_s", "output_tok_s_per_user")


def lines(name: str) -> list[dict[str, str]]:
    with (DATA / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def recorded(name: str) -> list[dict[str, object]]:
    if not (SHARED / name).exists():
        pytest.skip(f"no {SHARED / name}: the sources' figures are not at hand")
    found: list[dict[str, object]] = json.loads((SHARED / name).read_text())
    return found


def test_every_speed_of_minimax_m3_has_its_line() -> None:
    kinds = {"serving", "iso-interactivity", "offload", "qualitative", "training"}
    wanted = {row["id"] for row in recorded("m3_measurements.json") if row["kind"] in kinds}
    points = recorded("throughput_points.json")
    wanted |= {
        row["id"]
        for row in points
        if "MiniMax-M3" in str(row["model"]) and row["phase"] != "acceptance"
    }
    assert {line["id"] for line in lines("m3_serving")} == wanted | {"infx-1840-mi300x-profile"}
    others = {line["id"].split("-")[0] for line in lines("throughput_points")}
    assert others == {row["id"] for row in points if "MiniMax-M3" not in str(row["model"])}


def test_measured_figures_are_the_sources_own() -> None:
    rows = {str(row["id"]): row for row in recorded("m3_measurements.json")}
    checked = Counter[str]()
    for line in lines("m3_serving"):
        for column in (*FACTS, "prefill_tok_s", "concurrency"):
            said = rows.get(line["id"], {}).get(column)
            if isinstance(said, int | float) and line[column]:
                assert float(line[column]) == said, (line["id"], column)
                checked[column] += 1
    assert checked["ttft_ms"] > 20 and checked["tpot_ms"] > 40 and checked["output_tok_s"] > 80


@pytest.mark.parametrize("name", TABLES)
def test_a_line_is_whole_or_says_what_it_lacks(name: str) -> None:
    needed = ["engine", "hardware", "precision", "gpus", "tp", "dp", "moe_ep"]
    needed += ["input_len", "output_len", "concurrency"]
    table = lines(name)
    assert len({line["id"] for line in table}) == len(table)
    for line in table:
        if not line["problem"]:
            assert all(line[column] for column in needed), line["id"]
            assert line["tpot_ms"] or line["ttft_ms"], line["id"]
            assert int(line["tp"]) * int(line["dp"]) == int(line["gpus"]), line["id"]
    assert len(load_rows(name)) == sum(not line["problem"] for line in table)


@pytest.mark.parametrize("name", TABLES)
def test_rates_and_times_of_a_line_agree(name: str) -> None:
    for line in lines(name):
        rate, total = (float(line[each] or 0) for each in ("output_tok_s", "total_tok_s"))
        if rate and total and line["input_len"]:
            ratio = 1 + int(line["input_len"]) / int(line["output_len"])
            assert total / rate == pytest.approx(ratio, rel=0.01), line["id"]
        if line["tpot_from"] == "user rate":
            user = float(line["output_tok_s_per_user"])
            assert float(line["tpot_ms"]) == pytest.approx(1000 / user, rel=1e-4), line["id"]
        if line["tpot_from"] in ("decode rate", "output rate") and rate:
            step = 1000 * int(line["concurrency"]) / rate
            assert float(line["tpot_ms"]) == pytest.approx(step, rel=1e-3), line["id"]


@pytest.mark.parametrize("name", TABLES)
def test_times_of_a_stated_load_fill_its_requests(name: str) -> None:
    # a closed loop: concurrency requests, each its first token and the rest, in the stated rate
    checked = 0
    for line in lines(name):
        if line["tpot_from"] == "stated" and line["ttft_ms"] and line["output_tok_s"]:
            if line["problem"] or "eagle3" in line["draft"]:
                continue
            tokens = int(line["output_len"])
            request = float(line["ttft_ms"]) + (tokens - 1) * float(line["tpot_ms"])
            rate = 1000 * int(line["concurrency"]) * tokens / request
            assert rate == pytest.approx(float(line["output_tok_s"]), rel=0.12), line["id"]
            checked += 1
    assert checked > 10 or name != "m3_serving"
