"""Read what LiteRT really ran, operator by operator, from its own profiler.

An integer model proves itself here: XNNPACK names each kernel by its data types
("Convolution (NHWC, QC8) IGEMM"), and operators it did not take appear under
their TFLite names.  The profiler is reachable only through the C API of
libLiteRt.so, which the ai_edge_litert wheel ships without headers, so the
prototypes below are written by hand for ai-edge-litert 2.3.0.
"""

# This file travels: it must run on Python 3.8 and with numpy 1, so no newer syntax here.

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = Any


# More than any cache holds: writing it leaves nothing of a model there.
FLUSH_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Event:
    """One operator of the executed plan, with its time in each run.

    ``name`` is the runtime's own.  ``delegated`` tells XNNPACK operators from
    TFLite builtin ones.  ``node`` is the operator's index: within its XNNPACK
    runtime when delegated, within ``subgraph`` otherwise.  The index of a
    delegated operator restarts in every partition, so it is no key by itself;
    the list's order is the order of execution.
    """

    name: str
    delegated: bool
    seconds: Sequence[float]
    node: int
    subgraph: int


def profile(
    path: Path, inputs: Sequence[Array], threads: int = 1, hot: int = 5, cold: int = 0
) -> list[Event]:
    """Run the model's first signature and return its operators in order.

    ``inputs`` follow the torch order.  One run before the profiled ones warms
    caches and is not counted; before each of the last ``cold`` runs, the
    caches are emptied.  The profiler's clock ticks in microseconds, so only the
    mean of many runs tells a tiny operator's time.
    """
    if hot < 1 or threads < 1:
        raise ValueError("hot and threads must be at least 1")
    with ExitStack() as cleanup:
        session = _Session(_library(), path, threads, cleanup)
        session.feed(inputs)
        session.run()
        runs = [session.profiled_run() for _ in range(hot)]
        waste = np.zeros(FLUSH_BYTES if cold else 1, np.uint8)
        for _ in range(cold):
            waste += 1
            runs.append(session.profiled_run())
        return _joined(runs)


def _joined(runs: Sequence[Sequence[Event]]) -> list[Event]:
    """Several runs of the same plan, operator by operator."""
    keys = [[(e.name, e.delegated, e.node, e.subgraph) for e in run] for run in runs]
    if any(key != keys[0] for key in keys):
        raise RuntimeError("LiteRtGetProfilerEvents: the runs executed different operators")
    return [
        Event(
            first.name,
            first.delegated,
            [run[position].seconds[0] for run in runs],
            first.node,
            first.subgraph,
        )
        for position, first in enumerate(runs[0])
    ]


# --- The C API ---------------------------------------------------------------

_Handle = ctypes.c_void_p
_HandleOut = ctypes.POINTER(ctypes.c_void_p)
_SizeOut = ctypes.POINTER(ctypes.c_size_t)

_BUILTIN_OPERATOR = 1 << 1
_XNNPACK_OPERATOR = 1 << 3
_CPU = 1
_HOST_MEMORY = 1
_WRITE = 1
_MAX_RANK = 8


class _Layout(ctypes.Structure):
    # `rank` shares its word with `has_strides` as bit fields of 7 and 1.
    _fields_ = [
        ("rank", ctypes.c_uint32, 7),
        ("has_strides", ctypes.c_uint32, 1),
        ("dimensions", ctypes.c_int32 * _MAX_RANK),
        ("strides", ctypes.c_uint32 * _MAX_RANK),
    ]


class _TensorType(ctypes.Structure):
    _fields_ = [("element_type", ctypes.c_int), ("layout", _Layout)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("node", ctypes.c_uint64),
        ("subgraph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


class _Session:
    """A compiled model with buffers and a profiler, released by ``cleanup``."""

    def __init__(self, library: ctypes.CDLL, path: Path, threads: int, cleanup: ExitStack) -> None:
        self._library = library
        self._cleanup = cleanup
        self._environment = self._create("Environment", 0, None)
        self._model = self._create(
            "Model", self._environment, str(path).encode(), maker="LiteRtCreateModelFromFile"
        )
        self._compiled = self._create(
            "CompiledModel", self._environment, self._model, self._options(threads)
        )
        self._profiler = self._out("LiteRtCompiledModelGetProfiler", self._compiled)
        if not self._profiler:
            raise RuntimeError("LiteRtCompiledModelGetProfiler: profiling was not enabled")
        signature = self._out("LiteRtGetModelSignature", self._model, 0)
        self._inputs = self._buffers(signature, "Input")
        self._outputs = self._buffers(signature, "Output")

    def feed(self, inputs: Sequence[Array]) -> None:
        if len(inputs) != len(self._inputs):
            raise ValueError(f"the model takes {len(self._inputs)} inputs, not {len(inputs)}")
        for position, (buffer, value) in enumerate(zip(self._inputs, inputs, strict=True)):
            self._write(buffer, np.ascontiguousarray(value), position)

    def run(self) -> None:
        self._call(
            "LiteRtRunCompiledModel",
            self._compiled,
            0,
            len(self._inputs),
            self._inputs,
            len(self._outputs),
            self._outputs,
        )

    def profiled_run(self) -> list[Event]:
        # Reset first: events accumulate until then, and their strings die with it.
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self.run()
        self._call("LiteRtStopProfiler", self._profiler)
        return list(_operators(self._events()))

    def _events(self) -> Iterable[_Event]:
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, ctypes.byref(count))
        if count.value == 0:
            raise RuntimeError("LiteRtGetNumProfilerEvents: the runtime recorded no event")
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        return events

    def _options(self, threads: int) -> ctypes.c_void_p:
        options = self._create("Options")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
        self._add_option(options, b"runtime_options_string", b"enable_profiling = true\n")
        self._add_option(options, b"xnnpack", b"num_threads = %d\n" % threads)
        return options

    def _add_option(self, options: ctypes.c_void_p, identifier: bytes, toml: bytes) -> None:
        payload = ctypes.create_string_buffer(toml)
        # The options keep the bare pointer: this callback, which owns the
        # payload and frees nothing, ties its life to the session's.
        self._cleanup.callback(lambda _: None, payload)
        opaque = self._out(
            "LiteRtCreateOpaqueOptions",
            identifier,
            ctypes.cast(payload, _Handle),
            _keep_payload,
        )
        self._call("LiteRtAddOpaqueOptions", options, opaque)

    def _buffers(self, signature: ctypes.c_void_p, side: str) -> ctypes.Array[ctypes.c_void_p]:
        count = ctypes.c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", signature, ctypes.byref(count))
        made = [self._buffer(signature, side, index) for index in range(count.value)]
        return (_Handle * count.value)(*(buffer.value for buffer in made))

    def _buffer(self, signature: ctypes.c_void_p, side: str, index: int) -> ctypes.c_void_p:
        tensor = self._out(f"LiteRtGetSignature{side}TensorByIndex", signature, index)
        tensor_type = _TensorType()
        self._call("LiteRtGetRankedTensorType", tensor, ctypes.byref(tensor_type))
        requirements = self._out(
            f"LiteRtGetCompiledModel{side}BufferRequirements", self._compiled, 0, index
        )
        size = ctypes.c_size_t()
        self._call("LiteRtGetTensorBufferRequirementsBufferSize", requirements, ctypes.byref(size))
        return self._create(
            "TensorBuffer",
            self._environment,
            _HOST_MEMORY,
            ctypes.byref(tensor_type),
            size,
            maker="LiteRtCreateManagedTensorBuffer",
        )

    def _write(self, buffer: int, value: Array, position: int) -> None:
        size = ctypes.c_size_t()
        self._call("LiteRtGetTensorBufferPackedSize", buffer, ctypes.byref(size))
        if size.value != value.nbytes:
            raise ValueError(
                f"input {position} holds {size.value} bytes, not {value.nbytes}"
                f" ({value.dtype} {value.shape})"
            )
        address = ctypes.c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), _WRITE)
        ctypes.memmove(address, value.ctypes.data, value.nbytes)
        self._call("LiteRtUnlockTensorBuffer", buffer)

    def _create(self, kind: str, *arguments: object, maker: str = "") -> ctypes.c_void_p:
        """Create an object that the session's end destroys, last made first."""
        handle = self._out(maker or f"LiteRtCreate{kind}", *arguments)
        self._cleanup.callback(getattr(self._library, f"LiteRtDestroy{kind}"), handle)
        return handle

    def _out(self, function: str, *arguments: object) -> ctypes.c_void_p:
        """Call a function whose last parameter receives a handle."""
        handle = ctypes.c_void_p()
        self._call(function, *arguments, ctypes.byref(handle))
        return handle

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"{function} failed with LiteRtStatus {status}")


def _operators(events: Iterable[_Event]) -> Iterator[Event]:
    """The operators among the events; a delegate's own node is not one.

    The node that stands for a whole XNNPACK partition spans the operators in
    it, so counting it would count their time twice.
    """
    for event in events:
        delegated = event.kind == _XNNPACK_OPERATOR
        name = event.tag.decode(errors="replace")
        if delegated or (event.kind == _BUILTIN_OPERATOR and "Delegate" not in name):
            yield Event(name, delegated, [event.elapsed_us * 1e-6], event.node, event.subgraph)


_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


# Frees nothing: Python owns the payload.
_keep_payload = _Destructor(lambda _payload: None)


@functools.cache
def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("ai_edge_litert")
    if package is None or package.origin is None:
        raise RuntimeError("ai_edge_litert is not installed")
    library = ctypes.CDLL(str(Path(package.origin).parent / "libLiteRt.so"))
    for name, parameters in _PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes = parameters
        function.restype = None if name.startswith("LiteRtDestroy") else ctypes.c_int
    return library


_PROTOTYPES: dict[str, list[Any]] = {
    "LiteRtCreateEnvironment": [ctypes.c_int, ctypes.c_void_p, _HandleOut],
    "LiteRtDestroyEnvironment": [_Handle],
    "LiteRtCreateModelFromFile": [_Handle, ctypes.c_char_p, _HandleOut],
    "LiteRtDestroyModel": [_Handle],
    "LiteRtGetModelSignature": [_Handle, ctypes.c_size_t, _HandleOut],
    "LiteRtGetNumSignatureInputs": [_Handle, _SizeOut],
    "LiteRtGetNumSignatureOutputs": [_Handle, _SizeOut],
    "LiteRtGetSignatureInputTensorByIndex": [_Handle, ctypes.c_size_t, _HandleOut],
    "LiteRtGetSignatureOutputTensorByIndex": [_Handle, ctypes.c_size_t, _HandleOut],
    "LiteRtGetRankedTensorType": [_Handle, ctypes.POINTER(_TensorType)],
    "LiteRtCreateOptions": [_HandleOut],
    "LiteRtDestroyOptions": [_Handle],
    "LiteRtSetOptionsHardwareAccelerators": [_Handle, ctypes.c_int],
    "LiteRtCreateOpaqueOptions": [ctypes.c_char_p, ctypes.c_void_p, _Destructor, _HandleOut],
    "LiteRtAddOpaqueOptions": [_Handle, _Handle],
    "LiteRtCreateCompiledModel": [_Handle, _Handle, _Handle, _HandleOut],
    "LiteRtDestroyCompiledModel": [_Handle],
    "LiteRtCompiledModelGetProfiler": [_Handle, _HandleOut],
    "LiteRtGetCompiledModelInputBufferRequirements": [
        _Handle,
        ctypes.c_size_t,
        ctypes.c_size_t,
        _HandleOut,
    ],
    "LiteRtGetCompiledModelOutputBufferRequirements": [
        _Handle,
        ctypes.c_size_t,
        ctypes.c_size_t,
        _HandleOut,
    ],
    "LiteRtGetTensorBufferRequirementsBufferSize": [_Handle, _SizeOut],
    "LiteRtCreateManagedTensorBuffer": [
        _Handle,
        ctypes.c_int,
        ctypes.POINTER(_TensorType),
        ctypes.c_size_t,
        _HandleOut,
    ],
    "LiteRtDestroyTensorBuffer": [_Handle],
    "LiteRtGetTensorBufferPackedSize": [_Handle, _SizeOut],
    "LiteRtLockTensorBuffer": [_Handle, _HandleOut, ctypes.c_int],
    "LiteRtUnlockTensorBuffer": [_Handle],
    "LiteRtRunCompiledModel": [
        _Handle,
        ctypes.c_size_t,
        ctypes.c_size_t,
        _HandleOut,
        ctypes.c_size_t,
        _HandleOut,
    ],
    "LiteRtStartProfiler": [_Handle],
    "LiteRtStopProfiler": [_Handle],
    "LiteRtResetProfiler": [_Handle],
    "LiteRtGetNumProfilerEvents": [_Handle, ctypes.POINTER(ctypes.c_int)],
    "LiteRtGetProfilerEvents": [_Handle, ctypes.c_int, ctypes.POINTER(_Event)],
}


def _main(model: str, folder: str, threads: str, hot: str, cold: str) -> None:
    """Prints [[name, delegated, hot seconds, cold seconds], ...] for a folder's first sample."""
    inputs: list[Array] = []
    while True:
        file = Path(folder) / f"input-{len(inputs)}.npy"
        if not file.exists():
            break
        first = np.array(np.load(file, mmap_mode="r")[:1])
        # The format has no int64 inputs; indices fit into the 32 bits that it has.
        inputs.append(first.astype(np.int32) if first.dtype == np.int64 else first)
    events = profile(Path(model), inputs, int(threads), int(hot), int(cold))
    warm = int(hot)
    print(json.dumps([[e.name, e.delegated, e.seconds[:warm], e.seconds[warm:]] for e in events]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
