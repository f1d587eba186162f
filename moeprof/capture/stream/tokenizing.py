"""From prompts to the token ids that are fed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.prompts import Prompt
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.errors import InputError


def tokenize(
    folder: Path, config: Any, prompts: Sequence[Prompt], *, trust_remote_code: bool
) -> list[TokenSequence]:
    """Token ids of every prompt and completion, by the tokenizer in `folder`.

    `config` is the model's. InputError where a prompt is empty, too long or holds images.
    """
    tokenizer = _tokenizer(folder, trust_remote_code)
    sequences = []
    for prompt in prompts:
        asked = tokenizer(prompt.text)["input_ids"]
        answered = []
        if prompt.completion:
            answered = tokenizer(prompt.completion, add_special_tokens=False)["input_ids"]
        if not asked:
            raise InputError(f"{prompt.place}: has no tokens in this model's vocabulary")
        sequences.append(TokenSequence.of(asked, answered, prompt.label))
        _check(prompt, sequences[-1], config)
    return sequences


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason[:300]}") from None


def _check(prompt: Prompt, sequence: TokenSequence, config: Any) -> None:
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if most is not None and len(sequence) > most:
        raise InputError(
            f"{prompt.place}: {len(sequence)} tokens exceed the model's {most} positions: "
            "shorten it"
        )
    names = (f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index"))
    others = [token for name in names if (token := getattr(config, name, None)) is not None]
    if np.isin(sequence.ids, others).any():
        raise InputError(f"{prompt.place}: holds image tokens; stream takes text alone")
