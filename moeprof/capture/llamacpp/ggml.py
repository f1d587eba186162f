"""Reading ggml's tensors from Python: a mirror of its struct, checked against the library.

llama-cpp-python has no view of `ggml_tensor`. The mirror follows ggml/include/ggml.h of llama.cpp
0c1e5709; the struct has changed before, so before anything is read the loaded library makes two
tensors of known shapes, and every field is compared with what it must hold. A library of another
layout is refused.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, ClassVar

from moeprof.errors import InputError, MissingExtraError

F32, I32 = 0, 26  # ggml_type
MAX_DIMS, MAX_SRC, MAX_NAME, MAX_OP_PARAMS = 4, 10, 64, 64
_PROBE_BYTES = 1 << 16
_PROBE_NAME = b"moeprof_probe-7"


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""

    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * MAX_DIMS),  # elements by dimension, the fastest first
        ("nb", ctypes.c_size_t * MAX_DIMS),  # strides in bytes
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * (MAX_OP_PARAMS // 4)),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * MAX_SRC),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * MAX_NAME),
    ]


STRUCT_BYTES = ctypes.sizeof(Tensor)


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_: ClassVar = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


class Ggml:
    """The ggml that llama-cpp-python has loaded. Raises InputError if its structs are not ours."""

    def __init__(self) -> None:
        self._library = _load_library()
        self._check_layout()

    @property
    def tensor_get(self) -> int:
        """Address of `ggml_backend_tensor_get`, which reads a tensor wherever its buffer is."""
        return ctypes.cast(self._library.ggml_backend_tensor_get, ctypes.c_void_p).value or 0

    def type_sizes(self, kind: int) -> tuple[int, int]:
        """Values and bytes of a block of a ggml type."""
        library = self._library
        return library.ggml_blck_size(kind), library.ggml_type_size(kind)

    def _check_layout(self) -> None:
        """Compare every field of a matrix and of a view of it with what the library made."""
        library = self._library
        context = library.ggml_init(_InitParams(_PROBE_BYTES, None, False))
        try:
            whole = library.ggml_new_tensor_2d(context, I32, 7, 5)
            view = library.ggml_view_2d(context, whole, 3, 5, 28, 8)
            library.ggml_set_name(view, _PROBE_NAME)
            seen, base = (Tensor.from_address(each) for each in (view, whole))
            held = [seen.type, *seen.ne, *seen.nb, seen.view_src, seen.view_offs, seen.name]
            held += [seen.data, base.data, base.view_src, list(base.ne)]
            held += [view + Tensor.name.offset, library.ggml_nbytes(view)]
            data = library.ggml_get_data(whole)
            due = [I32, 3, 5, 1, 1, 4, 28, 140, 140, whole, 8, _PROBE_NAME]
            due += [data + 8, data, None, [7, 5, 1, 1]]
            due += [library.ggml_get_name(view), 4 * 28 + 12]
        finally:
            library.ggml_free(context)
        if held != due:
            raise InputError(
                "this llama-cpp-python's tensors are laid out in a way that moeprof does not know, "
                "nothing can be read from them: pip install 'llama-cpp-python==0.3.36'"
            )


def _load_library() -> ctypes.CDLL:
    """libggml-base of the llama_cpp package, with the types of what is called here."""
    llama_cpp = import_llama_cpp()
    folder = Path(llama_cpp.__file__).parent / "lib"
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll", "libggml-base.dll")
    found = next((folder / name for name in names if (folder / name).exists()), None)
    if found is None:
        raise InputError(f"{folder}: holds no ggml-base library: reinstall llama-cpp-python")
    library = ctypes.CDLL(str(found))
    address, size, count = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    for name, result, arguments in (
        ("ggml_init", address, [_InitParams]),
        ("ggml_free", None, [address]),
        ("ggml_new_tensor_2d", address, [address, ctypes.c_int, count, count]),
        ("ggml_view_2d", address, [address, address, count, count, size, size]),
        ("ggml_set_name", address, [address, ctypes.c_char_p]),
        ("ggml_get_name", address, [address]),
        ("ggml_get_data", address, [address]),
        ("ggml_nbytes", size, [address]),
        ("ggml_backend_tensor_get", None, [address, address, size, size]),
        ("ggml_blck_size", count, [ctypes.c_int]),
        ("ggml_type_size", size, [ctypes.c_int]),
    ):
        function = getattr(library, name, None)
        if function is None:
            raise InputError(f"{found}: has no {name}: install the llama-cpp-python of the extra")
        function.restype, function.argtypes = result, arguments
    return library


def import_llama_cpp() -> Any:
    """The package. MissingExtraError without it."""
    try:
        import llama_cpp
    except ImportError:
        raise MissingExtraError("llama-cpp-python", "llamacpp") from None
    return llama_cpp
