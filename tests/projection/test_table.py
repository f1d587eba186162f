"""Tables in, tables out; measurements in, narrower bands out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from moeprof.cli.main import main
from moeprof.errors import InputError
from moeprof.projection import calibrate_laws, project_table, read_measured, shipped_laws
from moeprof.projection.table import PREDICTED

HEAD = "id,model,hardware,engine,precision,tp,dp,moe_tp,moe_ep,concurrency,input_len,output_len"
RARE = "r2,MiniMaxAI/MiniMax-M2.5,b200_sxm,sglang,fp8,4,1,4,1,32,1024,1024"
GOOD = "r1,MiniMaxAI/MiniMax-M2.5,b200_sxm,vllm,fp8,4,1,4,1,32,1024,1024"


def write(folder: Path, *lines: str, head: str = HEAD) -> Path:
    path = folder / "rows.csv"
    path.write_text("\n".join((head, *lines)) + "\n")
    return path


def test_every_row_and_column_is_kept_and_bad_rows_say_why(tmp_path: Path) -> None:
    bad = [
        GOOD.replace("b200_sxm", "b999"),
        GOOD.replace("MiniMax-M2.5", "Nobody-1"),
        GOOD.replace(",32,", ",-4,"),
        GOOD.replace("vllm", "abacus"),
    ]
    path, out = write(tmp_path, GOOD, *bad), tmp_path / "out.csv"
    done = project_table(path, out)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert (done.rows, done.predicted) == (5, 1)
    assert list(rows[0]) == [*HEAD.split(","), *PREDICTED]
    assert [row["id"] for row in rows] == ["r1"] * 5
    first = rows[0]
    low, value, high = (float(first[f"pred_tpot_{end}ms"]) for end in ("low_", "", "high_"))
    assert low < value < high
    assert (first["fits"], first["problem"]) == ("true", "")
    named = ("b999", "Nobody-1", "concurrency", "abacus")
    for row, name in zip(rows[1:], named, strict=True):
        assert name in row["problem"]
        assert row["pred_tpot_ms"] == ""


def test_a_table_equals_one_projection_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.csv"
    project_table(write(tmp_path, GOOD), out)
    with out.open() as file:
        predicted = float(next(csv.DictReader(file))["pred_tpot_ms"])
    asked = "--precision fp8_block --kv-dtype fp8 --concurrency 32 --json"
    code = main(["project", "minimax-m2.5", "--hardware", "4xb200", *asked.split()])
    result = json.loads(capsys.readouterr().out)["result"]
    assert code == 0
    assert result["tpot_ms"]["value"] == pytest.approx(predicted, rel=1e-4)
    assert set(result["tpot_ms"]) >= {"value", "low", "high", "provenance"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b\n1,2\n", "no column model"),
        ("", "no column model"),
        ("\x00\xff", "rows.csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=said):
        project_table(path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(InputError, match="--force"):
        project_table(write(tmp_path, GOOD), out)
    assert out.read_text() == "mine"
    project_table(write(tmp_path, GOOD), out, force=True)
    assert out.read_text() != "mine"


def test_measurements_pull_the_prediction_and_narrow_its_band(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"

    def predicted(laws: object) -> dict[str, float]:
        project_table(write(tmp_path, RARE), out, laws=laws, force=True)  # type: ignore[arg-type]
        with out.open() as file:
            row = next(csv.DictReader(file))
        return {name: float(row[name]) for name in PREDICTED[:6]}

    before = predicted(None)
    slow = [f"{RARE},{before['pred_tpot_ms'] * 1.5},{before['pred_ttft_ms'] * 1.5}"] * 3
    mine = write(tmp_path, *slow, head=f"{HEAD},tpot_ms,ttft_ms")
    laws = calibrate_laws(shipped_laws(), read_measured(mine))
    after = predicted(laws)
    assert after["pred_tpot_ms"] / before["pred_tpot_ms"] == pytest.approx(1.5, rel=0.05)
    assert laws.calibrated == {"minimax_m2-62x3072x256/sglang/blackwell/fp8"}
    width = [row["pred_tpot_high_ms"] / row["pred_tpot_low_ms"] for row in (before, after)]
    assert width[1] < width[0]


@pytest.mark.parametrize("time", ["-3", "fast", "", "nan"])
def test_a_measurement_without_a_time_names_its_line(tmp_path: Path, time: str) -> None:
    path = write(tmp_path, f"{GOOD},12", f"{GOOD},{time}", head=f"{HEAD},tpot_ms")
    with pytest.raises(InputError, match=r"rows.csv, line 3: tpot_ms"):
        read_measured(path)


def test_what_does_not_fit_ends_with_4_and_what_is_unknown_with_2() -> None:
    project = ["project", "minimax-m3", "--quiet"]
    assert main([*project, "--hardware", "1xh200"]) == 4
    assert main([*project, "--hardware", "8xb999"]) == 2
    assert main([*project, "--hardware", "8xh200", "--concurrency", "-1"]) == 2
    assert main(["project"]) == 2
