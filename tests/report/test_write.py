"""Files: whole or not at all, never over what exists unless told to; figures are real PNGs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from moeprof.errors import InputError
from moeprof.report import ReportContents, ReportFile, render_html, save_figures, write_report
from moeprof.report.figures import FIGURES
from moeprof.report.pixels import LIGHT, UNUSED_LIGHT, colour_index, palette
from moeprof.trace import Trace

SOME = {"domain-distances.png", "specialists.png"}


@pytest.fixture(scope="module")
def written(contents: ReportContents, tmp_path_factory: pytest.TempPathFactory) -> ReportFile:
    """A page with every figure, written once: drawing takes seconds."""
    folder = tmp_path_factory.mktemp("written")
    return write_report(contents, folder / "deep" / "report.html", png_dir=folder / "png")


def test_writes_the_page_and_says_what(contents: ReportContents, written: ReportFile) -> None:
    path = Path(written.path)
    assert path.read_text(encoding="utf-8") == render_html(contents)
    assert written.to_dict() == {
        "path": str(path),
        "bytes": path.stat().st_size,
        "figures": [
            str(path.parents[1] / "png" / name)
            for name in FIGURES
            if name not in {"offload.png", *SOME}  # no host is named; two domains, no specialists
        ],
        "tables": [],
    }
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_takes_a_trace(trace: Trace, tmp_path: Path) -> None:
    assert write_report(trace, tmp_path / "r.html").bytes > 10_000


def test_does_not_overwrite_unless_forced(contents: ReportContents, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"report\.html exists, it will not be overwritten"):
        write_report(contents, path)
    assert path.read_text() == "mine"
    write_report(contents, path, force=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_figure_in_the_way_stops_everything(contents: ReportContents, tmp_path: Path) -> None:
    (tmp_path / "memory.png").write_text("mine")
    with pytest.raises(InputError, match=r"memory\.png exists"):
        write_report(contents, tmp_path / "r.html", png_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["memory.png"]


def test_a_folder_is_no_page(contents: ReportContents, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        write_report(contents, tmp_path, force=True)


def test_a_failure_leaves_nothing(
    contents: ReportContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_report(contents, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_fails_leaves_no_other(
    contents: ReportContents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(figure: object, contents: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FIGURES, "memory.png", fail)
    (tmp_path / "load-heatmap.png").write_text("mine")
    with pytest.raises(InputError, match="No space left on device"):
        write_report(contents, tmp_path / "r.html", png_dir=tmp_path, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["load-heatmap.png"]
    assert (tmp_path / "load-heatmap.png").read_text() == "mine"


def test_figures_are_pngs_with_content(written: ReportFile) -> None:
    for path in written.figures:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours and len(colours) > 20


def test_figures_are_the_same_every_time(
    contents: ReportContents, written: ReportFile, tmp_path: Path
) -> None:
    first = [Path(path).read_bytes() for path in written.figures]
    assert first == [path.read_bytes() for path in save_figures(contents, tmp_path)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The figures that are of the recording: most projected ones are of the model, whatever the
    recording lacks or is called, and take long to draw. For as long, there are no others.
    """
    model = {name for name in FIGURES if name.startswith("projected-")} - {"projected-routing.png"}
    kept = {name: draw for name, draw in FIGURES.items() if name not in model}
    monkeypatch.setattr("moeprof.report.figures.FIGURES", kept)
    return dict(kept)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_figures_for_papers_are_the_same_every_time(
    contents: ReportContents, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: FIGURES[name] for name in ("load-heatmap.png", "miss-ratio.png")}
    monkeypatch.setattr("moeprof.report.figures.FIGURES", two)
    first = save_figures(contents, tmp_path / "a", kind)
    assert [path.name for path in first] == [f"load-heatmap.{kind}", f"miss-ratio.{kind}"]
    for path, again in zip(first, save_figures(contents, tmp_path / "b", kind), strict=True):
        assert path.read_bytes() == again.read_bytes()
        assert path.read_bytes().startswith(b"%PDF" if kind == "pdf" else b"<?xml")
        assert b"Date" not in path.read_bytes()


def test_tables_of_the_page_are_parquet(contents: ReportContents, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    written = write_report(contents, tmp_path / "r.html", tables_dir=folder)
    assert sorted(written.tables) == sorted(str(path) for path in folder.iterdir())
    assert contents.load
    heat = pq.read_table(folder / "heat.parquet").to_pydict()
    assert heat["all tokens"] == contents.load.load.ravel().tolist()
    chart = pq.read_table(folder / "imbalance-layer.parquet")
    assert chart.schema.metadata[b"y"] == b"imbalance (max / mean)"
    rows = [row for row in chart.to_pylist() if row["series"] == "experts"]
    assert [(row["x"], row["y"]) for row in rows] == [
        (layer.layer, layer.imbalance) for layer in contents.load.per_layer
    ]
    bars = pq.read_table(folder / "memory-stack.parquet").to_pylist()
    assert len({row["bar"] for row in bars}) == len(contents.deployments)
    assert all(0 <= row["share_of_axis"] <= 1 and row["note"] for row in bars)
    layers = pq.read_table(folder / f"load-load-of-all-{len(rows)}-layers-as-a-table.parquet")
    assert layers["assignments"].to_pylist() == contents.load.load.sum(axis=1).tolist()
    assert str(layers.schema.field("its share").type) == "string"
    with pytest.raises(InputError, match="exists"):
        write_report(contents, tmp_path / "other.html", tables_dir=folder)
    assert not (tmp_path / "other.html").exists()


def test_figures_of_odd_recordings(
    odd: ReportContents, drawn: dict[str, object], tmp_path: Path
) -> None:
    names = {path.name for path in save_figures(odd, tmp_path)}
    assert ("memory.png" in names) == bool(odd.deployments)
    assert ("load-heatmap.png" in names) == (odd.load is not None)
    assert ("miss-ratio.png" in names) == (odd.layer_curve is not None)


def test_hostile_names_do_not_break_figures(
    hostile: ReportContents, drawn: dict[str, object], tmp_path: Path
) -> None:
    names = {path.name for path in save_figures(hostile, tmp_path)}
    assert names == set(drawn) - {"specialists.png"}  # of so few requests there are none


def test_heatmap_image_is_the_load(contents: ReportContents) -> None:
    import base64
    import io

    from moeprof.report.pixels import png_uri

    assert contents.load
    load = contents.load.load.copy()
    load[0, :2] = (0, load[0].max() * 100)
    index = colour_index(load)
    assert index[0, 0] == 0
    assert index[0, 1] == 255
    uri = png_uri(index, palette(LIGHT, UNUSED_LIGHT))
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        assert image.size == load.shape[::-1]
        assert list(image.tobytes()) == index.ravel().tolist()


@pytest.mark.parametrize("inside", ["manifest.json", "segments/000000.arrows", "page.html"])
def test_nothing_in_a_trace_is_overwritten(
    contents: ReportContents, saved: Callable[..., Path], inside: str
) -> None:
    trace = saved(50)
    before = {file: file.read_bytes() for file in trace.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="lies in a trace"):
        write_report(contents, trace / inside, force=True)
    assert {file: file.read_bytes() for file in trace.rglob("*") if file.is_file()} == before


def test_links_and_devices_are_refused_even_when_forced(
    contents: ReportContents, tmp_path: Path
) -> None:
    link, pipe = tmp_path / "link.html", tmp_path / "pipe.html"
    link.symlink_to(tmp_path / "nowhere.html")
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(InputError, match="is a link or a device"):
            write_report(contents, path, force=True)
    assert set(tmp_path.iterdir()) == {link, pipe}
