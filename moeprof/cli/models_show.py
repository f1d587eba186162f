"""Show a model: layers, parameters by tensor class, bytes an expert by format, KV bytes a token.

MODEL is a preset name (see moeprof models list), a config.json, or a folder that holds one.
"""

from __future__ import annotations

from typing import Annotated

import typer

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag, files_of
from moeprof.model import ModelDescription, describe_model
from moeprof.report.text.model import model_text


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    tp: Annotated[int, typer.Option(help="Tensor-parallel ranks that share the KV cache.")] = 1,
    kv_dtype: Annotated[str, typer.Option(help="Format of the KV cache.")] = "bf16",
    index_dtype: Annotated[str, typer.Option(help="Format of the index-key cache.")] = "bf16",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[ModelDescription]:
    """Run the command."""
    described = describe_model(model, tp=tp, kv_dtype=kv_dtype, index_dtype=index_dtype)
    return Answer(described, model_text, json, inputs=files_of(model))
