"""What a checkpoint may hold: plain values and tensors. Arrays and sparse matrices are written as mappings of these."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch

ARRAY, SPARSE = "__array__", "__sparse__"
# What a sparse matrix comes back as; each is made from its compressed rows (csc: columns) without growing beyond them.
FORMATS = ("csr", "csc", "coo", "lil")
SCALARS = (type(None), bool, int, float, str, bytes)
DEEPEST = 32


def to_plain(value: Any, name: str) -> Any:
    """Copy nested containers such that the safe loader reads them, with tensors on the CPU; ``name`` is for the error.

    Parts of a model among them are left out: their weights are in the state dict (SASRecF lists one as a parameter).

    Raises
    ------
    ValueError
        It could not be read back.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if scipy.sparse.issparse(value):
        kind = value.format if value.format in FORMATS else "csr"
        rows = value.tocsc() if kind == "csc" else value.tocsr()
        arrays = [torch.from_numpy(part) for part in (rows.data, rows.indices, rows.indptr)]
        return {SPARSE: kind, "arrays": arrays, "shape": [int(n) for n in rows.shape]}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not isinstance(item, torch.nn.Module)}
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, to_plain(item, f"{name}[{key}]")) for key, item in kept.items())
    if isinstance(value, (list, tuple)):
        return type(value)(to_plain(item, name) for item in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, SCALARS):
        return value
    raise ValueError(
        f"{name} is of the type [{type(value).__name__}], which no checkpoint can hold: allowed are plain "
        "values, tensors, arrays and sparse matrices."
    )


def check_plain(value: Any, budget: int) -> None:
    """Raise ValueError unless a value read from a file is plain, and no larger when copied than ``budget`` parts.

    A file can name one list many times over, within others that are named many times over, or within itself; or a
    tensor of many numbers that are all one.
    """
    left = budget

    def walk(value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError("its values are nested too deep, or are more than the file could hold")
        if type(value) in (dict, OrderedDict):
            if not all(isinstance(key, (str, int)) for key in value):
                raise ValueError("a key is no text")
            for item in value.values():
                walk(item, depth + 1)
        elif type(value) in (list, tuple):
            for item in value:
                walk(item, depth + 1)
        elif type(value) in (torch.Tensor, torch.nn.Parameter):
            _check_tensor(value)
        elif type(value) not in SCALARS:
            raise ValueError(f"it holds a value of the type [{type(value).__name__}]")

    walk(value, 0)


def _check_tensor(tensor: torch.Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError("a tensor is sparse, quantised, or without numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("a tensor is larger than its numbers in the file")


def from_plain(value: Any) -> Any:
    """Arrays and sparse matrices again, wherever `to_plain` wrote one.

    Raises
    ------
    ValueError
        Such a mapping does not hold together.
    """
    if isinstance(value, dict) and ARRAY in value:
        if len(value) != 1 or not isinstance(value[ARRAY], torch.Tensor):
            raise ValueError("an array of it holds no numbers.")
        return value[ARRAY].numpy()
    if isinstance(value, dict) and SPARSE in value:
        return _sparse(value)
    if isinstance(value, dict):
        return {key: from_plain(item) for key, item in value.items()}
    return type(value)(map(from_plain, value)) if isinstance(value, (list, tuple)) else value


def _sparse(value: dict[str, Any]) -> Any:
    try:
        kind, shape = value[SPARSE], tuple(value["shape"])
        data, indices, indptr = (part.numpy() for part in value["arrays"])
        if kind not in FORMATS or len(shape) != 2:
            raise ValueError
        make = scipy.sparse.csc_matrix if kind == "csc" else scipy.sparse.csr_matrix
        matrix = make((data, indices, indptr), shape=shape)
        matrix.check_format(full_check=True)
        return matrix.asformat(kind)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"a sparse matrix of it does not hold together ({error}).") from error
