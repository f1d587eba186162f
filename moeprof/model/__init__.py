"""What the model is: architecture from a config.json, tensors by class, bytes by format."""

from moeprof.model.attention import Attention, Indexer, LinearAttention
from moeprof.model.description import (
    ModelDescription,
    ModelList,
    describe_model,
    list_models,
)
from moeprof.model.formats import FORMATS, WeightFormat, weight_format
from moeprof.model.loading import load_model
from moeprof.model.moe_model import MoEModel
from moeprof.model.precision import Precision, load_precision, precision_names, weight_bytes
from moeprof.model.presets import preset_names
from moeprof.model.tensors import TENSOR_CLASSES, TensorGroup

__all__ = [
    "FORMATS",
    "TENSOR_CLASSES",
    "Attention",
    "Indexer",
    "LinearAttention",
    "MoEModel",
    "ModelDescription",
    "ModelList",
    "Precision",
    "TensorGroup",
    "WeightFormat",
    "describe_model",
    "list_models",
    "load_model",
    "load_precision",
    "precision_names",
    "preset_names",
    "weight_bytes",
    "weight_format",
]
