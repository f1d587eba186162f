"""What a deployment is asked to do: requests of stated lengths, in a closed or an open loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moeprof.errors import InputError
from moeprof.projection.serving.request_file import read_requests
from moeprof.projection.serving.requests import Request, poisson_arrivals, uniform_requests
from moeprof.projection.serving.workload import Workload, workload
from moeprof.result import NOT_JSON, Result

_PER_PLACE = 10  # requests for each of a closed loop's places, as InferenceX sends them
_OPEN_LOOP = 1000


@dataclass(frozen=True)
class Load(Result):
    """`requests` with `concurrency` in flight at a time, or at their own times if None.

    `rate` are the requests a second of a Poisson process that drew those times; None where a file
    states them. `source` says where the lengths come from.
    """

    requests: Sequence[Request] = field(metadata=NOT_JSON, hash=False, repr=False)
    concurrency: int | None
    rate: float | None
    source: str
    workload: Workload | None = None
    seed: int = 0


def make_load(
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    requests_file: str | Path | None = None,
    workload_name: str | None = None,
    input_len: int | None = None,
    output_len: int | None = None,
    length_spread: float = 0.0,
    hit_ratio: float | None = None,
    num_requests: int | None = None,
    longest: int | None = None,
    seed: int = 0,
) -> Load:
    """The load of a closed loop (`concurrency`), of an open one (`rate`), or as a file has it.

    Lengths are those of a file, of a workload by name, or `input_len` and `output_len` with
    `length_spread` (`uniform_requests`). `hit_ratio` of every prompt is then in the prefix cache;
    None leaves a file or workload what it states. `num_requests` are 10 for each place of a closed
    loop and 1,000 of an open one if None; a file gives the first of its own. Prompts are cut so
    that no request exceeds `longest` tokens. Raises InputError where these contradict each other.
    """
    if concurrency is not None and rate is not None:
        raise InputError("a load has a concurrency or a rate, not both")
    for what, number, least in (("concurrency", concurrency, 1), ("longest", longest, 2)):
        if number is not None and number < least:
            raise InputError(f"{what} is {number}, it must be at least {least}")
    if num_requests is not None and num_requests < 1:
        raise InputError(f"{num_requests} requests: there must be at least 1")
    count = num_requests or (_PER_PLACE * concurrency if concurrency else _OPEN_LOOP)
    found: Workload | None = None
    if requests_file is not None:
        _alone("a file of requests", workload_name, input_len, output_len)
        requests = read_requests(requests_file)[:num_requests]
        source = str(requests_file)
    elif workload_name is not None:
        _alone(f"workload {workload_name}", input_len, output_len)
        found = workload(workload_name)
        requests = found.requests(count, seed=seed, longest=longest)
        source = f"workload {workload_name}"
    else:
        if input_len is None or output_len is None:
            raise InputError("say how long requests are: input and output, a workload or a file")
        requests = uniform_requests(
            count, input_len, output_len, length_spread=length_spread, seed=seed
        )
        spread = "" if not length_spread else f"{1 - length_spread:.3g} to 1 x "
        source = f"{spread}{input_len} + {output_len} tokens"
    requests = [_fitted(request, longest, hit_ratio) for request in requests]
    requests = _timed(requests, concurrency, rate, requests_file is not None, seed)
    return Load(requests, concurrency, rate, source, found, seed)


def _alone(what: str, *others: object) -> None:
    if any(other is not None for other in others):
        raise InputError(f"{what} has its own lengths: leave out the other ways to state them")


def _fitted(request: Request, longest: int | None, hit_ratio: float | None) -> Request:
    """The request cut to `longest` tokens, with `hit_ratio` of its prompt in the cache."""
    prompt, output, held = request.input_len, request.output_len, request.cached_len
    if hit_ratio is not None:
        if not 0 <= hit_ratio <= 1:
            raise InputError(f"hit_ratio is {hit_ratio}, it must be from 0 to 1")
        held = int(prompt * hit_ratio)
    if longest is not None:
        output = min(output, longest - 1)
        prompt = min(prompt, longest - output)
    return replace(
        request, input_len=prompt, output_len=output, cached_len=max(0, min(held, prompt - 1))
    )


def _timed(
    requests: list[Request],
    concurrency: int | None,
    rate: float | None,
    from_file: bool,
    seed: int,
) -> list[Request]:
    """The requests at Poisson times where a rate is asked for."""
    if rate is not None:
        times = poisson_arrivals(len(requests), rate, seed=seed).tolist()
        return [replace(r, arrival_s=t) for r, t in zip(requests, times, strict=True)]
    if concurrency is None and not (from_file and any(r.arrival_s for r in requests)):
        raise InputError("say when requests come: a concurrency, a rate, or a file with arrival_s")
    return requests
