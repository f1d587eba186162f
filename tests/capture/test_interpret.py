"""Traffic from metadata alone, without a model; and what importing capture costs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moeprof.capture.transformers.traffic.interpret import Interpreter
from moeprof.capture.transformers.traffic.step import Batch, BatchEnd, Step

EOS = 2


class Ready:
    """A copy that has arrived."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)
        self.nbytes = self._values.nbytes

    def array(self) -> Any:
        return self._values


def step(batch: Batch, columns: int, past: int, **copies: Any) -> Step:
    ready: dict[str, Any] = {name: Ready(values) for name, values in copies.items()}
    return Step(0, batch, columns, past, **ready)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_a_batch_gives_each_request_what_it_would_have_alone(
    lengths: list[tuple[int, int]], chunk: int
) -> None:
    """Prompts and numbers of new tokens, in chunks, padded: positions and phases by request."""
    width, new = max(p for p, _ in lengths), max(n for _, n in lengths)
    rows = len(lengths)
    batch = Batch(10, rows, width, 0.0, (None,) * rows, (EOS,))
    mask = np.array([[column >= width - p for column in range(width)] for p, _ in lengths])
    interpreter = Interpreter(8, token_ids=False)
    taken = []
    for past in range(0, width, chunk):
        part = mask[:, past : past + chunk]
        taken.append(interpreter.traffic(step(batch, part.shape[1], past, mask=part)))
    for turn in range(new - 1):
        fed = [[EOS if turn >= n - 1 else 7] for _, n in lengths]
        taken.append(interpreter.traffic(step(batch, 1, width + turn, token_ids=fed)))

    request = np.concatenate([t.request for t in taken])
    position = np.concatenate([t.position for t in taken])
    phase = np.concatenate([t.phase for t in taken])
    for row, (prompt, generated) in enumerate(lengths):
        mine = request == 10 + row
        assert position[mine].tolist() == list(range(prompt + generated - 1))
        assert phase[mine].tolist() == [0] * prompt + [1] * (generated - 1)
    ended = interpreter.finish(BatchEnd(batch, new), clock_base=0.0)
    assert [(r.prompt_tokens, r.output_tokens) for r in ended] == lengths
    assert not interpreter.batches()


def test_candidates_of_assisted_decoding_do_not_end_a_row() -> None:
    batch = Batch(0, 1, 3, 0.0, (None,), (EOS,))
    interpreter = Interpreter(8, token_ids=False)
    interpreter.traffic(step(batch, 3, 0))
    assert len(interpreter.traffic(step(batch, 3, 3, token_ids=[[5, EOS, 6]]))) == 3
    assert len(interpreter.traffic(step(batch, 1, 4, token_ids=[[9]]))) == 1


def test_a_batch_that_lost_a_step_is_lost() -> None:
    batch = Batch(0, 1, 3, 0.0, ("a",))
    interpreter = Interpreter(8, token_ids=False)
    interpreter.lose(batch)
    assert interpreter.is_lost(batch)
    (request,) = interpreter.finish(BatchEnd(batch), 0.0)
    assert (request.label, request.prompt_tokens, request.output_tokens) == ("a", None, None)


def test_importing_capture_imports_no_engine() -> None:
    heavy = "{'torch', 'transformers', 'numba', 'pynvml', 'matplotlib', 'scipy'}"
    code = f"import sys, moeprof.capture; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
