"""From prompts to the token ids that are fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.prompts import Prompt, check_token_ids
from moeprof.capture.stream.sequences import TokenSequence
from moeprof.errors import InputError


def tokenize(
    folder: Path, config: Any, prompts: Sequence[Prompt], *, trust_remote_code: bool
) -> list[TokenSequence]:
    """Token ids of every prompt and completion: those given, or by the tokenizer in `folder`.

    `config` is the model's. InputError where a prompt is empty, too long or holds images, and
    where ids are none of the model's.
    """
    tokenizer = cache(partial(_tokenizer, folder, trust_remote_code))  # ids need none
    return [_checked(prompt, _sequence(prompt, tokenizer), config) for prompt in prompts]


def _sequence(prompt: Prompt, tokenizer: Callable[[], Any]) -> TokenSequence:
    asked = prompt.token_ids
    if asked is None:
        asked = tokenizer()(prompt.text)["input_ids"]
    answered = prompt.completion_token_ids
    if answered is None and prompt.completion:
        answered = tokenizer()(prompt.completion, add_special_tokens=False)["input_ids"]
    return TokenSequence.of(asked, answered or (), prompt.label, prompt.name)


def _tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {reason[:300]}") from None


def _checked(prompt: Prompt, sequence: TokenSequence, config: Any) -> TokenSequence:
    text_config = config.get_text_config()
    if not sequence.prompt_tokens:
        raise InputError(f"{prompt.place}: has no tokens in this model's vocabulary")
    check_token_ids(prompt, text_config.vocab_size)
    most = getattr(text_config, "max_position_embeddings", None)
    if most is not None and len(sequence) > most:
        raise InputError(
            f"{prompt.place}: {len(sequence)} tokens exceed the model's {most} positions: "
            "shorten it"
        )
    names = (f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index"))
    others = [token for name in names if (token := getattr(config, name, None)) is not None]
    if np.isin(sequence.ids, others).any():
        raise InputError(f"{prompt.place}: holds image tokens; stream takes text alone")
    return sequence
