"""Vectors of eight numbers in compiled kernels, one number a gene.

The compiler does not see that blocks of different columns never overlap, and makes eight scalar operations of a loop
over eight genes; these functions are one instruction each, or a few where registers are shorter. Vector ``k`` of a
C-contiguous float64 array are its elements ``8 k`` to ``8 k + 7``; bounds are not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.base import BaseContext
from numba.core.cgutils import get_or_insert_function
from numba.core.datamodel import DataModelManager
from numba.core.typing.templates import Signature
from numba.extending import intrinsic, models, register_model

from pyrosplice._linalg.compiled import Kernel

LANES = 8
ALIGNMENT = 8 * LANES  # bytes, of what :func:`zeros` makes: no vector crosses a line of the cache (twice as fast)
VECTOR = ir.VectorType(ir.DoubleType(), LANES)
Arguments: TypeAlias = Sequence[ir.Value]
Lowering: TypeAlias = Callable[[BaseContext, ir.IRBuilder, Signature, Arguments], ir.Value]


class LanesType(types.Type):
    """Numba's type of such a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: DataModelManager, kind: types.Type) -> None:
        super().__init__(manager, kind, VECTOR)


lanes = LanesType()


def zeros(*shape: int) -> np.ndarray:
    """Zeros ``(*shape, 8)`` whose vectors are aligned."""
    size = int(np.prod(shape)) * LANES
    memory = np.zeros(size + LANES)
    first = -memory.ctypes.data % ALIGNMENT // memory.itemsize
    return memory[first : first + size].reshape(*shape, LANES)


def _of_kernels(make: Callable[..., tuple[Signature, Lowering] | None]) -> Kernel:
    """What kernels call, of how its arguments' types are lowered."""
    function: Kernel = intrinsic(make)
    return function


@_of_kernels
def load(typing: object, array: types.Type, k: types.Type) -> tuple[Signature, Lowering] | None:
    """Vector ``k`` of an array."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return builder.load(_address(context, builder, signature, args), align=8)

    return (lanes(array, types.intp), lower) if _is_table(array) else None


@_of_kernels
def put(typing: object, array: types.Type, k: types.Type, vector: types.Type) -> tuple[Signature, Lowering] | None:
    """Write vector ``k`` of an array."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        builder.store(args[2], _address(context, builder, signature, args), align=8)
        return context.get_dummy_value()

    return (types.void(array, types.intp, lanes), lower) if _is_table(array) else None


@_of_kernels
def same(typing: object, number: types.Type) -> tuple[Signature, Lowering]:
    """Vector of eight times a number."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        blank, index = ir.Constant(VECTOR, ir.Undefined), ir.IntType(32)
        first = builder.insert_element(blank, args[0], ir.Constant(index, 0))
        return builder.shuffle_vector(first, blank, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

    return lanes(types.float64), lower


@_of_kernels
def plus_product(typing: object, total: types.Type, left: types.Type, right: types.Type) -> tuple[Signature, Lowering]:
    """Add a product, ``total + left right``."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return _of_vectors(builder, "fmuladd", args[1], args[2], args[0])

    return lanes(lanes, lanes, lanes), lower


@_of_kernels
def minus_product(typing: object, total: types.Type, left: types.Type, right: types.Type) -> tuple[Signature, Lowering]:
    """Subtract a product, ``total − left right``."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return _of_vectors(builder, "fmuladd", builder.fneg(args[1]), args[2], args[0])

    return lanes(lanes, lanes, lanes), lower


@_of_kernels
def minus(typing: object, vector: types.Type) -> tuple[Signature, Lowering]:
    """Change the sign."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return builder.fneg(args[0])

    return lanes(lanes), lower


@_of_kernels
def quotient(typing: object, left: types.Type, right: types.Type) -> tuple[Signature, Lowering]:
    """Divide, ``left / right``, as IEEE 754 has it."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return builder.fdiv(*args)

    return lanes(lanes, lanes), lower


@_of_kernels
def root(typing: object, vector: types.Type) -> tuple[Signature, Lowering]:
    """Square roots; NaN of what is negative."""

    def lower(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
        return _of_vectors(builder, "sqrt", args[0])

    return lanes(lanes), lower


def _is_table(kind: types.Type) -> bool:
    """Whether it is an array that has such vectors; numba says of others that there is no such function."""
    return isinstance(kind, types.Array) and kind.layout == "C" and kind.dtype == types.float64


def _address(context: BaseContext, builder: ir.IRBuilder, signature: Signature, args: Arguments) -> ir.Value:
    """Where vector ``args[1]`` of array ``args[0]`` is."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    first = builder.gep(array.data, [builder.mul(args[1], ir.Constant(args[1].type, LANES))])
    return builder.bitcast(first, VECTOR.as_pointer())


def _of_vectors(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """What one of the compiler's own functions makes of vectors."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * len(args))
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f64"), args)
