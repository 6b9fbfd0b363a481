"""A compiled program: the only file that knows AOTInductor.

A program is a shared library with AOTInductor's C interface (torch/csrc/inductor/aoti_runtime/interface.h). It calls
our operators, found in the operator library, and brings what it needs of torch along; or it calls torch's C functions,
found in libtorch_cpu, where the stand-in (`kernels/cpu/torch_tensors.cpp`) does not have all of them. Python's torch is
not imported: that takes seconds, and nothing of it is needed.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pllm.kernels.cpu.library import load_library
from pllm.runtime.artifact import Weight
from pllm.runtime.errors import ArtifactDamagedError, ArtifactMismatchError, PllmError
from pllm.runtime.loaded_operators import refuse_other_operators
from pllm.runtime.manifest import ProgramInfo, TensorInfo

__all__ = ["Program", "load_torch"]

# By the manifest's names: what numpy holds it as (it has no bfloat16), and safetensors' name.
_NUMPY = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(np.uint16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int8": np.dtype(np.int8),
}
_SAFETENSORS = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_CONSTANT_ALIGNMENT = 64
"""AOTInductor rounds the sizes of constants up to this."""

_handle = ctypes.c_void_p
_handles = ctypes.POINTER(ctypes.c_void_p)
_sizes = ctypes.POINTER(ctypes.c_int64)
_OURS, _TORCHS = "pllm_tensors_", "aoti_torch_"
"""How the names of the functions for tensors begin, in the operator library and in libtorch_cpu."""
_TENSORS: dict[str, tuple[Any, ...]] = {
    "create_tensor_from_blob": (
        *(_handle, ctypes.c_int64, _sizes, _sizes, ctypes.c_int64),
        *(ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, _handles),
    ),
    "delete_tensor_object": (_handle,),
    "get_data_ptr": (_handle, _handles),
    "get_dim": (_handle, _sizes),
    "get_dtype": (_handle, ctypes.POINTER(ctypes.c_int32)),
    "get_sizes": (_handle, ctypes.POINTER(_sizes)),
    "get_strides": (_handle, ctypes.POINTER(_sizes)),
}


class _ConstantEntry(ctypes.Structure):
    """AOTInductorConstantMapEntry."""

    _fields_ = (("name", ctypes.c_char_p), ("handle", _handle))


_size_out = ctypes.POINTER(ctypes.c_size_t)
_text_out = ctypes.POINTER(ctypes.c_char_p)
_CONTAINER: dict[str, tuple[Any, ...]] = {
    "CreateWithDevice": (_handles, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p),
    "Delete": (_handle,),
    "GetNumInputs": (_handle, _size_out),
    "GetNumOutputs": (_handle, _size_out),
    "GetNumConstants": (_handle, _size_out),
    "GetConstantName": (_handle, ctypes.c_size_t, _text_out),
    "GetConstantOriginalFQN": (_handle, ctypes.c_size_t, _text_out),
    "GetConstantDtype": (_handle, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int32)),
    "GetConstantDataSize": (_handle, ctypes.c_size_t, _size_out),
    "UpdateUserManagedConstantBufferPairs": (
        *(_handle, ctypes.POINTER(_ConstantEntry), ctypes.c_size_t),
        *(ctypes.c_bool, ctypes.c_bool),
    ),
    "RunSingleThreaded": (_handle, _handles, ctypes.c_size_t, _handles, ctypes.c_size_t, _handle, _handle),
}


def load_torch() -> ctypes.CDLL:
    """Torch's C library, loaded for all libraries that come after it; the operator library must.

    Raises ArtifactMismatchError where torch is not installed or cannot be loaded.
    """
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise ArtifactMismatchError(
            "torch is not installed, and this artifact's program calls it: pip install 'pllm[torch]'"
        )
    # Read by OpenMP when it is loaded, below. Its threads spin while they wait, and when a neighbour had one of their
    # cores a step of 0.3 ms was seen to take 550; threads that sleep instead took 0.9 (DECISIONS.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    folder = Path(torch.origin).parent / "lib"
    # Torch brings its own OpenMP library, for its own operators.
    libraries = [*sorted(folder.glob("libgomp*.so*")), folder / "libc10.so", folder / "libtorch_cpu.so"]
    try:
        return [ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL) for path in libraries][-1]
    except OSError as error:
        raise ArtifactMismatchError(f"the installed torch cannot be loaded: {error}; install it anew") from error


class _Tensors:
    """Tensors as a program takes and gives them: the operator library's, or torch's."""

    def __init__(self, library: ctypes.CDLL, prefix: str) -> None:
        """Raises AttributeError where the library has no such functions."""
        for name, arguments in _TENSORS.items():
            function = getattr(library, prefix + name)
            function.argtypes = arguments
            setattr(self, "_" + name, function)
        names = ("float32", "bfloat16", "float16", "int64", "int32", "int8", "uint8", "bool")
        self.dtypes = {name: int(getattr(library, f"{prefix}dtype_{name}")()) for name in names}
        self._cpu = int(getattr(library, f"{prefix}device_type_cpu")())

    if TYPE_CHECKING:
        _create_tensor_from_blob: Any
        _delete_tensor_object: Any
        _get_data_ptr: Any
        _get_dim: Any
        _get_dtype: Any
        _get_sizes: Any
        _get_strides: Any

    def tensor(self, address: int, shape: Sequence[int], dtype: str) -> int:
        """A handle to a contiguous tensor over memory that the caller keeps."""
        dim = len(shape)
        strides = [1] * dim
        for i in range(dim - 2, -1, -1):
            strides[i] = strides[i + 1] * max(shape[i + 1], 1)
        sizes_type = ctypes.c_int64 * dim
        handle = ctypes.c_void_p()
        failed = self._create_tensor_from_blob(
            *(address, dim, sizes_type(*shape), sizes_type(*strides), 0),
            *(self.dtypes[dtype], self._cpu, 0, ctypes.byref(handle)),
        )
        if failed or not handle.value:
            raise PllmError(f"no tensor was made of {dtype}{list(shape)}")
        return handle.value

    def delete(self, handle: int | None) -> None:
        if handle:
            self._delete_tensor_object(handle)

    def array(self, handle: int) -> NDArray[np.float32]:
        """A view of a contiguous float32 tensor; the tensor goes with the view."""
        owner = _TensorOwner(self, handle)
        dim, dtype, address = ctypes.c_int64(), ctypes.c_int32(), ctypes.c_void_p()
        sizes, strides = _sizes(), _sizes()
        if (
            self._get_dim(handle, ctypes.byref(dim))
            or self._get_dtype(handle, ctypes.byref(dtype))
            or self._get_sizes(handle, ctypes.byref(sizes))
            or self._get_strides(handle, ctypes.byref(strides))
            or self._get_data_ptr(handle, ctypes.byref(address))
        ):
            raise PllmError("the program's output cannot be read")
        if dtype.value != self.dtypes["float32"]:
            raise PllmError(f"the program's output has torch's dtype {dtype.value}, not float32")
        owner.__array_interface__ = {
            "version": 3,
            "typestr": "<f4",
            "shape": tuple(sizes[: dim.value]),
            "strides": tuple(4 * stride for stride in strides[: dim.value]),
            "data": (address.value or 0, True),
        }
        return np.asarray(owner)


class _TensorOwner:
    """Gives a tensor back when the last array that views it is gone."""

    __array_interface__: dict[str, Any]

    def __init__(self, tensors: _Tensors, handle: int) -> None:
        self._tensors = tensors
        self._handle = handle

    def __del__(self) -> None:
        self._tensors.delete(self._handle)


class Program:
    """An opened program with its weights. One thread runs it; `close` ends it."""

    def __init__(
        self, info: ProgramInfo, tensors: _Tensors, library: ctypes.CDLL, operators: Sequence[ctypes.CDLL]
    ) -> None:
        self.info = info
        self._tensors = tensors
        self._library = library
        self._operators = operators
        self._container = ctypes.c_void_p()
        self._constants: list[int] = []
        self._call("CreateWithDevice", ctypes.byref(self._container), 1, b"cpu", None)

    @classmethod
    def open(
        cls, info: ProgramInfo, library: Path, weights: Mapping[str, Weight], operators: Sequence[Path]
    ) -> "Program":
        """Load the program's `library`, after the `operators`, and give it its weights, which must outlive it.

        Raises ArtifactMismatchError where it cannot be loaded here, ArtifactDamagedError where the manifest, the
        program and the weights do not agree.
        """
        torch = load_torch() if info.calls_torch else None
        refuse_other_operators(operators)
        try:
            loaded = [load_library(path, ctypes.RTLD_GLOBAL) for path in operators]
            for handle in loaded:
                handle.pllm_last_error.restype = ctypes.c_char_p
            program_library = load_library(library)
            for name, arguments in _CONTAINER.items():
                getattr(program_library, f"AOTInductorModelContainer{name}").argtypes = arguments
            tensors = _Tensors(loaded[0], _OURS) if torch is None else _Tensors(torch, _TORCHS)
        except (OSError, AttributeError) as error:
            raise ArtifactMismatchError(f"{library} cannot be loaded: {error}; build the artifact again") from error
        program = cls(info, tensors, program_library, loaded)
        try:
            program._check_interface(library)
            program._give_weights(library, weights)
        except BaseException:
            program.close()
            raise
        return program

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """One forward call: the inputs by name (bfloat16 as its uint16 bits), contiguous; returns the first output.

        The result is a view of the program's own tensor, read-only, and keeps it alive. Raises PllmError for inputs
        that are not as the program's `info` says, and where an operator refuses; the engine is then unusable.
        """
        if not self._container:
            raise PllmError(f"program {self.info.name!r} is closed")
        self._check(inputs)
        tensors, infos = self._tensors, self.info.inputs
        handles = (ctypes.c_void_p * len(infos))()
        try:
            for i, info in enumerate(infos):
                array = inputs[info.name]
                handles[i] = tensors.tensor(array.ctypes.data, array.shape, info.dtype)
        except BaseException:
            for handle in handles:
                tensors.delete(handle)
            raise
        outputs = (ctypes.c_void_p * len(self.info.outputs))()
        # The input handles are the program's from here on, also where it fails.
        self._call("RunSingleThreaded", self._container, handles, len(handles), outputs, len(outputs), None, None)
        for handle in outputs[1:]:
            tensors.delete(handle)
        logits = outputs[0]
        if logits is None:
            raise PllmError(f"program {self.info.name!r} gave no output")
        return tensors.array(logits)

    def close(self) -> None:
        """Free the program; its library stays loaded. Arrays that `run` returned stay valid."""
        if self._container:
            self._call("Delete", self._container)
            self._container = ctypes.c_void_p()
        for handle in self._constants:
            self._tensors.delete(handle)
        self._constants = []

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, f"AOTInductorModelContainer{name}")(*arguments):
            said = [self._operators_last_error(), self._last_error()]
            reason = "; ".join(text for text in said if text) or "the reason is on the standard error output"
            raise PllmError(f"program {self.info.name!r}: {name} failed: {reason}")

    def _operators_last_error(self) -> str:
        """Of the library that the program's calls reach: of several alike in a process, the loader takes the first."""
        if not self._operators:
            return ""
        get = ctypes.CDLL(None).pllm_last_error
        get.restype = ctypes.c_char_p
        return (get() or b"").decode(errors="replace")

    def _last_error(self) -> str:
        text = ctypes.c_char_p()
        try:
            get = self._library.AOTInductorGetLastError
        except AttributeError:
            return ""
        get(ctypes.byref(text))
        return (text.value or b"").decode(errors="replace")

    def _number(self, name: str, *arguments: object, kind: Any = ctypes.c_size_t) -> int:
        out = kind()
        self._call(name, self._container, *arguments, ctypes.byref(out))
        return int(out.value)

    def _text(self, name: str, index: int) -> str:
        out = ctypes.c_char_p()
        self._call(name, self._container, index, ctypes.byref(out))
        return (out.value or b"").decode()

    def _check_interface(self, library: Path) -> None:
        has = (self._number("GetNumInputs"), self._number("GetNumOutputs"))
        said = (len(self.info.inputs), len(self.info.outputs))
        if has != said:
            raise ArtifactDamagedError(f"{library} has {has} inputs and outputs, its manifest says {said}", library)

    def _give_weights(self, library: Path, weights: Mapping[str, Weight]) -> None:
        """Checks what AOTInductor does not: that each constant gets a weight of its own dtype, size and shape."""

        def damaged(reason: str) -> ArtifactDamagedError:
            return ArtifactDamagedError(f"{library}: {reason}; build the artifact again", library)

        declared = {constant.name: constant for constant in self.info.constants}
        count = self._number("GetNumConstants")
        found: set[str] = set()
        entries = (_ConstantEntry * count)()
        for i in range(count):
            constant = self._text("GetConstantOriginalFQN", i)
            weight = weights.get(declared[constant].weight) if constant in declared else None
            if weight is None:
                raise damaged(f"no weight for the program's constant {constant!r}")
            dtype = _SAFETENSORS.get(weight.dtype)
            wanted = (self._number("GetConstantDtype", i, kind=ctypes.c_int32), self._number("GetConstantDataSize", i))
            size = -(-weight.nbytes // _CONSTANT_ALIGNMENT) * _CONSTANT_ALIGNMENT
            if dtype is None or (self._tensors.dtypes[dtype], size) != wanted:
                raise damaged(
                    f"constant {constant!r} has torch's dtype {wanted[0]} and {wanted[1]} bytes, but its weight "
                    f"{weight.name!r} is {weight.dtype}{list(weight.shape)}"
                )
            if weight.shape != declared[constant].shape:
                raise damaged(
                    f"constant {constant!r} has the shape {list(declared[constant].shape)}, but its weight "
                    f"{weight.name!r} has {list(weight.shape)}"
                )
            handle = self._tensors.tensor(weight.address, weight.shape, dtype)
            self._constants.append(handle)
            entries[i] = _ConstantEntry(self._text("GetConstantName", i).encode(), handle)
            found.add(constant)
        if found != set(declared):
            raise damaged(f"the manifest gives weights for constants that it lacks: {sorted(set(declared) - found)}")
        if count:
            self._call("UpdateUserManagedConstantBufferPairs", self._container, entries, count, False, True)

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        names = [info.name for info in self.info.inputs]
        if inputs.keys() != set(names):
            raise PllmError(f"program {self.info.name!r} takes {names}, not {list(inputs)}")
        bound: dict[str, int] = {}
        for info in self.info.inputs:
            self._check_input(info, inputs[info.name], bound)

    def _check_input(self, info: TensorInfo, array: NDArray[Any], bound: dict[str, int]) -> None:
        fits = array.dtype == _NUMPY[info.dtype] and array.ndim == len(info.shape) and array.flags.c_contiguous
        if fits:
            for term, size in zip(info.shape, array.shape, strict=True):
                if isinstance(term, str):
                    dim = self.info.dims[term]
                    fits = fits and dim.min <= size <= dim.max and bound.setdefault(term, size) == size
                else:
                    fits = fits and term == size
        if not fits:
            limits = {term: self.info.dims[term] for term in info.shape if isinstance(term, str)}
            raise PllmError(
                f"program {self.info.name!r}: {info.name} is {array.dtype}{list(array.shape)}, and must be "
                f"{info.dtype}{list(info.shape)}, contiguous, with {limits} and {bound}"
            )
