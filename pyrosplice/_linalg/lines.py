"""Sixteen numbers at once, held in registers, for our compiled kernels.

Numba keeps a small array of sums in memory, since it cannot rule out that another array overlaps it: every product then
waits for the one before to be stored. A line is a vector of the machine instead (five times as fast in ``chebyshev``).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

WIDTH = 16  # numbers of a line: one line of the cache in single precision
_FAST = ("contract", "reassoc", "nsz")
_LONG = ir.IntType(64)


class Line(types.Type):
    """Line of ``WIDTH`` numbers of a precision."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Line({dtype})")


@register_model(Line)
class _LineModel(models.PrimitiveModel):
    def __init__(self, manager: Any, line: Line) -> None:
        super().__init__(manager, line, ir.VectorType(manager.lookup(line.dtype).get_value_type(), WIDTH))


@intrinsic
def load_line(typing_context, array, row):  # type: ignore[no-untyped-def]
    """Row of a contiguous array ``(N, WIDTH)``, as a line."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = context.get_value_type(signature.return_type)
        number = builder.load(_address(context, builder, signature, arguments, line))
        number.align = array.dtype.bitwidth // 8
        return number

    return Line(array.dtype)(array, row), generate


@intrinsic
def store_line(typing_context, array, row, line):  # type: ignore[no-untyped-def]
    """Put a line into a row of a contiguous array ``(N, WIDTH)``."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address = _address(context, builder, signature, arguments, arguments[2].type)
        builder.store(arguments[2], address).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.none(array, row, line), generate


@intrinsic
def repeated(typing_context, number):  # type: ignore[no-untyped-def]
    """A number, ``WIDTH`` times."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = context.get_value_type(signature.return_type)
        first = builder.insert_element(ir.Constant(line, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH))

    return Line(number)(number), generate


@intrinsic
def product_and(typing_context, left, right, more):  # type: ignore[no-untyped-def]
    """Multiply and add, ``left · right + more``, number by number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        product = builder.fmul(arguments[0], arguments[1], flags=_FAST)
        return builder.fadd(product, arguments[2], flags=_FAST)

    return more(left, right, more), generate


@intrinsic
def product_less(typing_context, left, right, less):  # type: ignore[no-untyped-def]
    """Multiply and subtract, ``left · right − less``, number by number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        product = builder.fmul(arguments[0], arguments[1], flags=_FAST)
        return builder.fsub(product, arguments[2], flags=_FAST)

    return less(left, right, less), generate


def _address(context: Any, builder: Any, signature: Any, arguments: Any, line: ir.Type) -> Any:
    data = make_array(signature.args[0])(context, builder, arguments[0]).data
    row = context.cast(builder, arguments[1], signature.args[1], types.int64)
    return builder.bitcast(builder.gep(data, [builder.mul(row, ir.Constant(_LONG, WIDTH))]), line.as_pointer())
