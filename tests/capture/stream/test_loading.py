"""A layer's tensors are those that transformers loads, and each layer's turn ends with its body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.stream.loading import Loader
from moeprof.capture.stream.opening import open_model
from moeprof.capture.stream.pipeline import Busy
from moeprof.capture.stream.skeleton import Skeleton
from moeprof.errors import InputError

from .models import STREAMED, load, make, save

RING = 1 << 15  # smaller than a layer: room comes back while it is filled


def tensors_of(opened: Any, ring_bytes: int) -> dict[str, Any]:
    """Every tensor of every layer, copied in its turn, and those beside them."""
    skeleton, places, found = opened.skeleton, opened.places, {}
    paths = [places.layer(index) for index in range(places.last + 1)]
    frame = skeleton.part(places.text, but=places.layers)
    with Loader(skeleton, frame, [skeleton.part(path) for path in paths], ring_bytes) as loader:
        loader.load()
        for path in paths:
            with loader.loaded():
                held = skeleton.model.get_submodule(path).state_dict(prefix=f"{path}.")
                found |= {name: tensor.clone() for name, tensor in held.items()}
            assert all(p.is_meta for p in skeleton.model.get_submodule(path).parameters())
        state = skeleton.model.state_dict()
        found |= {name: tensor for name, tensor in state.items() if not tensor.is_meta}
    assert all(tensor.is_meta for tensor in skeleton.model.state_dict().values())
    return found


@pytest.mark.parametrize("by_transformers", [False, True])
@pytest.mark.parametrize("family", STREAMED)
def test_every_tensor_is_the_one_that_transformers_loads(
    family: str, by_transformers: bool, tmp_path: Path, monkeypatch: Any, torch: Any
) -> None:
    if by_transformers:  # as it is where a tensor has to be converted
        monkeypatch.setattr(Skeleton, "_fills", lambda *args: iter(()))
    folder = save(make(family), tmp_path / "model")
    opened = open_model(folder, "cpu", "float32")
    wanted, found = load(folder).state_dict(), tensors_of(opened, RING)
    assert len(found) > 10
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name


def test_a_file_that_is_cut_while_it_is_read_stops_the_run(tmp_path: Path, torch: Any) -> None:
    folder = save(make("mixtral"), tmp_path / "model", shard="1GB")
    opened = open_model(folder, "cpu", "float32")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate((folder / "model.safetensors").stat().st_size // 2)
    with pytest.raises(InputError, match=r"model\.safetensors: is cut off"):
        tensors_of(opened, RING)


def test_time_under_way_counts_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 4.0, 6.0, 9.0])
    monkeypatch.setattr("moeprof.capture.stream.pipeline.time.monotonic", lambda: next(clock))
    busy = Busy()
    with busy:  # from 1 to 4
        assert busy.seconds == 2
    assert busy.seconds == 3
    with busy:  # from 6 to 9
        pass
    assert busy.seconds == 6
