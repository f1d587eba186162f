"""Any known format to a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from moeprof.errors import InputError
from moeprof.model import MoEModel, load_model
from moeprof.trace.folder import drafted, refuse_existing
from moeprof.trace.formats.block import Block, Findings, Import, Options
from moeprof.trace.formats.cleaning import WARM_UP, cleaned
from moeprof.trace.formats.import_result import ImportResult
from moeprof.trace.formats.importing_counts import import_counts
from moeprof.trace.formats.reading import reading
from moeprof.trace.formats.registry import choose_format
from moeprof.trace.formats.survey import Survey, look_at, model_of, rank_ordered
from moeprof.trace.rows import Request, TokenRows
from moeprof.trace.schema import expert_dtype
from moeprof.trace.writer import TraceWriter

_HELD_REQUESTS = 4096  # that wait to be written together
_KEPT_BYTES = 256 << 20  # a file whose rows take less is read once, a larger one twice


def import_trace(
    files: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    model: str | Path | MoEModel | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    keep_warmup: bool = False,
    token_ids: bool = False,
    force: bool = False,
) -> ImportResult:
    """Write foreign recordings as the trace `output`.

    The format is recognised by content unless `format` names it. Several files are one recording,
    in the order given. `model` says what the files do not: native layers and the number of experts
    (`experts` alone will do; without either it is the highest id + 1, and a note says so).
    Warm-up is left out unless `keep_warmup`; token ids are left out unless `token_ids`.

    Nothing is made up: phase is null, request and position are -1 where the files do not say.
    Raises InputError, one line, on malformed files and on values that do not go together.
    """
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise InputError("importing takes at least one file")
    output = Path(output)
    refuse_existing(output, force)
    chosen = choose_format(paths, format)
    known = None if model is None else load_model(model)
    options = _options(known, experts, top_k)
    with reading(paths[0], chosen.name):
        source = chosen.read(paths, options)
    if source.counts is not None:
        return import_counts(chosen.name, source, paths[0], output, known, options, force)
    job = _Job(chosen.name, source, paths[0], keep_warmup)
    return job.write(output, known, options, token_ids, force)


def _options(known: MoEModel | None, experts: int | None, top_k: int | None) -> Options:
    for name, value in (("experts", experts), ("top_k", top_k)):
        if value is not None and value < 1:
            raise InputError(f"{name} {value} is not a number above 0")
    if known is None:
        return Options(experts=experts, top_k=top_k)
    if not known.moe_layers:
        raise InputError(f"{known.name} has no MoE layers")
    if experts not in (None, known.experts):
        raise InputError(f"{known.name} has {known.experts} experts a layer, not {experts}")
    return Options(known.layers, known.experts, top_k or known.top_k, known.moe_layers)


class _Job:
    """One import of rows: read once to learn what is in them, then written."""

    def __init__(self, name: str, source: Import, path: Path, keep_warmup: bool) -> None:
        self._name = name
        self._source = source
        self._path = path
        self._keep_warmup = keep_warmup
        self._found = Findings()
        self._kept: list[Block] | None = []

    def write(
        self, output: Path, known: MoEModel | None, options: Options, token_ids: bool, force: bool
    ) -> ImportResult:
        """Survey, then write; the result says what was left out."""
        survey = self._survey()
        found = self._found
        if not survey.tokens:
            raise InputError(_nothing(self._path, self._name, found))
        _check_top_k(self._path, known, options, found, survey)
        layers = tuple(sorted(survey.layers))
        model, native = model_of(self._path, known, options, found, survey, layers)
        with_ids = token_ids and survey.token_ids
        if survey.token_ids and not token_ids:
            found.note("token ids are in the file and left out; --token-ids keeps them")
        requests = _requests(found, survey)
        with (
            drafted(output, force) as draft,
            self._writer(draft, model, native, survey, with_ids) as writer,
        ):
            for block in self._blocks():
                writer.write(_rows(block, layers, survey, model.experts, with_ids))
            for number, request in enumerate(requests, 1):
                writer.put_request(request)
                if number % _HELD_REQUESTS == 0:
                    writer.flush()
        return ImportResult(
            path=str(output),
            format=self._name,
            tokens=survey.tokens,
            requests=len(requests),
            layers=len(native),
            experts=model.experts,
            top_k=survey.top_k or 0,
            counts_only=False,
            skipped=dict(found.skipped),
            notes=list(found.notes),
        )

    def _writer(
        self, path: Path, model: MoEModel, native: tuple[int, ...], survey: Survey, token_ids: bool
    ) -> TraceWriter:
        """An empty trace that takes the rows."""
        found = self._found
        return TraceWriter(
            path,
            model,
            layers=native,
            top_k=survey.top_k,
            engine=found.engine,
            engine_version=found.engine_version,
            weights=bool(survey.weights),
            token_ids=token_ids,
            rank_ordered=rank_ordered(found, survey),
            clock_base=0.0,
            expert_bytes=_stated_sizes(found, survey, native),
        )

    def _survey(self) -> Survey:
        survey, size = Survey(), 0
        for block in self._read(self._found):
            look_at(block, survey, self._found)
            size += block.nbytes
            if self._kept is not None and size <= _KEPT_BYTES:
                self._kept.append(block)
            else:
                self._kept = None
        return survey

    def _blocks(self) -> Iterable[Block]:
        """The blocks again: from memory, or from the files."""
        return self._read(Findings()) if self._kept is None else self._kept

    def _read(self, found: Findings) -> Iterator[Block]:
        assert self._source.blocks is not None
        blocks = self._source.blocks(found)
        with reading(self._path, self._name):
            for block in cleaned(blocks, found, keep_warmup=self._keep_warmup):
                if len(block):
                    yield block


def _check_top_k(
    path: Path, known: MoEModel | None, options: Options, found: Findings, survey: Survey
) -> None:
    """InputError if the user said another top-k; a note if only the model has another."""
    wanted = options.top_k
    if wanted in (None, survey.top_k):
        return
    if known is None or wanted != known.top_k:
        raise InputError(f"{path}: tokens have {survey.top_k} experts a layer, not {wanted}")
    found.note(f"{known.name} has top-{wanted}, the file has {survey.top_k} experts a token")


def _nothing(path: Path, name: str, found: Findings) -> str:
    skipped = ", ".join(f"{count:,} x {reason}" for reason, count in found.skipped.items())
    remedy = "; --keep-warmup imports those rows" if WARM_UP in found.skipped else ""
    return f"{path}: no token of this {name} file can be imported ({skipped or 'empty'}){remedy}"


def _rows(
    block: Block, layers: tuple[int, ...], survey: Survey, experts: int, token_ids: bool
) -> TokenRows:
    """`block` as rows of the trace, with a column for every layer."""
    ids, weights = block.experts, block.weights
    if block.layers != layers:
        ids = _spread(ids, block.layers, layers, -1)
        weights = None if weights is None else _spread(weights, block.layers, layers, 0)
    recorded = None if ids.dtype.kind == "u" else ids[:, :, 0] >= 0
    if recorded is not None and recorded.all():
        recorded = None
    elif recorded is not None:
        ids = np.where(recorded[:, :, None], ids, 0)
    tokens = len(block)
    token_id = block.token_id if block.token_id is not None else np.full(tokens, -1, np.int32)
    return TokenRows(
        step=block.step.astype(np.int64, copy=False),
        request=block.request.astype(np.int32, copy=False),
        position=block.position.astype(np.int32, copy=False),
        phase=block.phase,
        experts=ids.astype(expert_dtype(experts), copy=False),
        recorded=recorded,
        weights=None if weights is None else _half(weights),
        token_id=token_id if token_ids else None,
    )


def _requests(found: Findings, survey: Survey) -> list[Request]:
    """What is known of every request; of most no more than that it was there."""
    named = {request.index: request for request in found.requests}
    return [named.get(index) or Request(index) for index in sorted(survey.requests | set(named))]


def _stated_sizes(found: Findings, survey: Survey, native: tuple[int, ...]) -> dict[int, int]:
    """Bytes of an expert by native layer: of every recorded layer, or none."""
    layers = sorted(survey.layers)
    sizes = [found.expert_bytes.get(layer, 0) for layer in layers]
    return dict(zip(native, sizes, strict=True)) if all(sizes) else {}


def _half(weights: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return weights.astype(np.float16)


def _spread(
    values: np.ndarray, layers: tuple[int, ...], all_layers: tuple[int, ...], fill: int
) -> np.ndarray:
    """[T, L, k] as [T, all layers, k]; layers that are in none of them go."""
    out = np.full((len(values), len(all_layers), values.shape[2]), fill, _signed(values))
    shared = [n for n in layers if n in all_layers]
    out[:, np.searchsorted(all_layers, shared)] = values[:, np.searchsorted(layers, shared)]
    return out


def _signed(values: np.ndarray) -> np.dtype:
    return np.dtype(np.int32) if values.dtype.kind in "iu" else values.dtype
