"""llama.cpp through its C interface: rounds a GGUF file, serves logits, or measures rates.

    python llama.py LIBRARIES quantize IN OUT Q4_0
    python llama.py LIBRARIES serve MODEL
    python llama.py LIBRARIES bench MODEL

A program of its own, so that its memory is nobody else's, and its end is not the benchmark's.
`serve` prints the vocabulary and the bytes of all tensors, then answers each request: a count and
as many tokens, as int32, by the logits after each of them, as float32; a count of 0 begins anew.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

from edgebuild.generate import Decoder, measured, memory

CONTEXT = 512
# Tokens of one request at most; and those of a prompt and of an answer that are timed.
BATCH, PROMPT, NEW, REPEATS = 128, 128, 64, 5
# llama_ftype, and whether all matrices have it: else those that are both table and head get more.
FTYPES = {"Q4_0": (2, False), "Q4_0 pure": (2, True), "Q4_K_M": (15, False)}


class ModelParams(ctypes.Structure):
    """llama_model_params of the release that peers.py names, as llama.h declares it there."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("flags", c_bool * 6),
    ]


class ContextParams(ctypes.Structure):
    """llama_context_params of that release."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("types", c_int32 * 5),
        ("rope", c_float * 6),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("flags", c_bool * 6),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class QuantizeParams(ctypes.Structure):
    """llama_model_quantize_params of that release."""

    _fields_ = [
        ("nthread", c_int32),
        ("ftype", c_int32),
        ("output_tensor_type", c_int32),
        ("token_embedding_type", c_int32),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("keep_split", c_bool),
        ("dry_run", c_bool),
        ("pointers", c_void_p * 4),
        ("max_buf_size", c_size_t),
    ]


class Batch(ctypes.Structure):
    """llama_batch: places and sequences may stay unsaid; a logit is wanted where `logits` is 1."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", POINTER(ctypes.c_int8)),
    ]


class Llama(Decoder):
    """A model that reads as our own loader's does, so that the same code times both."""

    def __init__(self, libraries: Path, model: Path, gives_all: bool) -> None:
        self.context, self.length, self._gives_all = CONTEXT, 0, gives_all
        self._library = library = open_library(libraries)
        self._model = library.llama_model_load_from_file(
            str(model).encode(), library.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {model}")
        wanted = library.llama_context_default_params()
        wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = CONTEXT, BATCH, BATCH
        wanted.n_outputs_max_per_seq = BATCH if gives_all else 1
        # One each for the cores that it may use: more would wait for each other.
        wanted.n_threads = wanted.n_threads_batch = len(os.sched_getaffinity(0))
        self._state = library.llama_init_from_model(self._model, wanted)
        if not self._state:
            raise ValueError("llama.cpp makes no context")
        self.vocabulary = int(
            library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        )
        self.size = int(library.llama_model_size(self._model))

    def forget(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._state), True)
        self.length = 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [tokens or 1, vocabulary]."""
        count = len(tokens)
        ids = (c_int32 * count)(*tokens)
        wanted = (ctypes.c_int8 * count)(*[self._gives_all] * (count - 1), 1)
        code = self._library.llama_decode(
            self._state, Batch(count, ids, None, None, None, None, wanted)
        )
        if code:
            raise ValueError(f"llama_decode ended with {code}")
        self.length += count
        found = self._library.llama_get_logits(self._state)
        rows = count if self._gives_all else 1
        return np.ctypeslib.as_array(found, (rows, self.vocabulary)).copy()


def open_library(folder: Path) -> ctypes.CDLL:
    """libllama with its kernels for this processor."""
    for name in ("libggml-base.so", "libggml.v*.so"):
        (file,) = folder.glob(name)
        backends = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    backends.ggml_backend_load_all_from_path.argtypes = [c_char_p]
    backends.ggml_backend_load_all_from_path(str(folder).encode())
    (file,) = folder.glob("libllama.v*.so")
    library = ctypes.CDLL(str(file))
    for name, result, arguments in (
        ("llama_model_default_params", ModelParams, []),
        ("llama_context_default_params", ContextParams, []),
        ("llama_model_quantize_default_params", QuantizeParams, []),
        ("llama_model_load_from_file", c_void_p, [c_char_p, ModelParams]),
        ("llama_init_from_model", c_void_p, [c_void_p, ContextParams]),
        ("llama_model_get_vocab", c_void_p, [c_void_p]),
        ("llama_vocab_n_tokens", c_int32, [c_void_p]),
        ("llama_model_size", ctypes.c_uint64, [c_void_p]),
        ("llama_get_memory", c_void_p, [c_void_p]),
        ("llama_memory_clear", None, [c_void_p, c_bool]),
        ("llama_decode", c_int32, [c_void_p, Batch]),
        ("llama_get_logits", POINTER(c_float), [c_void_p]),
        ("llama_model_quantize", c_uint32, [c_char_p, c_char_p, POINTER(QuantizeParams)]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def quantize(libraries: Path, source: Path, out: Path, ftype: str) -> None:
    library = open_library(libraries)
    wanted = library.llama_model_quantize_default_params()
    (wanted.ftype, wanted.pure), wanted.allow_requantize = FTYPES[ftype], True
    if library.llama_model_quantize(str(source).encode(), str(out).encode(), wanted):
        raise ValueError(f"llama.cpp cannot make {ftype} of {source}")


def serve(model: Llama) -> None:
    out, requests = sys.stdout.buffer, sys.stdin.buffer
    out.write(np.array([model.vocabulary, model.size], np.int64).tobytes())
    out.flush()
    while head := requests.read(4):
        count = int.from_bytes(head, sys.byteorder)
        if not count:
            model.forget()
            continue
        tokens = np.frombuffer(requests.read(4 * count), np.int32)
        out.write(model.read(tokens.tolist()).tobytes())
        out.flush()


def bench(libraries: Path, file: Path) -> dict[str, object]:
    """As our own loader prints it, with the bytes of all tensors."""
    model = Llama(libraries, file, gives_all=False)
    found = measured(model, [PROMPT], NEW, REPEATS)
    held = memory()
    return {
        **{"rows": found["rows"], "bytes": model.size, "peak": held["VmHWM"]},
        **{"anonymous": held["RssAnon"], "mapped": held["RssFile"]},
    }


def main() -> None:
    libraries, command, file, *rest = sys.argv[1:]
    if command == "quantize":
        quantize(Path(libraries), Path(file), Path(rest[0]), rest[1])
    elif command == "serve":
        serve(Llama(Path(libraries), Path(file), gives_all=True))
    else:
        print(json.dumps(bench(Path(libraries), Path(file))))


if __name__ == "__main__":
    main()
