"""Small models of several families, saved as checkpoints are: sharded safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..conftest import spread_routers, tiny_m3, tiny_m3_vl, tiny_mixtral, tiny_qwen3
from ..families import spread_routers as spread_named
from ..tiny_models import modeling, tiny_model

# By family, its router class, where the tiny model is made by shrinking the default one.
SHRUNK = {
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3TopkRouter"),
    "gpt_oss": ("GptOssForCausalLM", "GptOssTopKRouter"),
    "glm4_moe": ("Glm4MoeForCausalLM", "Glm4MoeTopkRouter"),
}
WHOLE = {"m3": tiny_m3, "m3_vl": tiny_m3_vl, "mixtral": tiny_mixtral, "qwen3": tiny_qwen3}
STREAMED = (*WHOLE, *SHRUNK)
SHARD = "30KB"


def make(family: str) -> Any:
    """The tiny model of `family`, in evaluation mode."""
    import torch

    torch.manual_seed(0)
    if family in WHOLE:
        return spread_routers(WHOLE[family]().eval())
    kind, router = SHRUNK[family]
    model = tiny_model(getattr(modeling(family), kind))
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 4  # shorter than the texts
    spread_named(model, frozenset({router}))
    return model


def save(model: Any, folder: Path, shard: str = SHARD) -> Path:
    """`model` in `folder`, in files of up to `shard`, with a tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder, max_shard_size=shard)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w63").save_pretrained(folder)
    return folder


def text_of(ids: Any) -> str:
    """Words that this tokenizer turns into `ids`."""
    return " ".join(f"w{int(i)}" for i in ids)


def load(folder: Path) -> Any:
    """The whole model, as transformers loads it."""
    import transformers

    from moeprof.capture.transformers.run import model_class

    config = transformers.AutoConfig.from_pretrained(folder)
    return model_class(config).from_pretrained(folder, dtype="float32").eval()
