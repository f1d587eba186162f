"""List the models that moeprof knows by name."""

from __future__ import annotations

from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.model import ModelList, list_models
from moeprof.report.text.model import models_text


def run(json: JsonFlag = False, quiet: QuietFlag = False) -> Answer[ModelList]:
    """Run the command."""
    return Answer(list_models(), models_text, json)
