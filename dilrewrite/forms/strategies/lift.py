"""lift: a 1-D Conv as a 2-D one of height 1, dilation and all: the same work in the runtime's 2-D kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import AddKernelAxis
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy

BETWEEN = "/"
"""Stands between the name and the settings of a form inside of another one's settings."""


@final
@dataclass(frozen=True, slots=True)
class Lift(Strategy):
    """[N, C, L] -> [N, C, 1, L], kernel (1, k), and back: two free Reshapes. The dilation stays.

    ONNX Runtime's CPU provider runs 1-D Convs by im2col and a matrix product, 2-D ones directly in a blocked layout.

    `form`: the form that the 2-D Conv gets, for devices that take neither one axis nor the dilation: its name, and
    settings behind slashes, such as `space_to_batch/layout=reshape`. Refuses forms that hold for finite values only.
    """

    form: str = ""

    def __post_init__(self) -> None:
        """Check `form`; raises ValueError for what is no form of a 2-D Conv."""
        if self.form:
            self.inner()

    def inner(self) -> tuple[str, Strategy]:
        """Return the form that the 2-D Conv gets, and its name."""
        from dilrewrite.errors import UsageError
        from dilrewrite.forms.strategies import every_strategy, parse

        try:
            name, found = parse(self.form.replace(BETWEEN, ":", 1).replace(BETWEEN, ","))
        except UsageError as error:
            raise ValueError(f"form={self.form}: {error}") from error
        if name not in every_strategy() or name == "lift" or found.finite_inputs_only or found.skips_padding:
            raise ValueError(f"form={self.form} is no form that a lifted Conv gets")
        return name, found

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse all but rank 1, and what the form refuses of the 2-D Conv."""
        if geometry.rank > 1:
            return f"only a 1-D Conv gets another axis here, this one has rank {geometry.rank}"
        return self.inner()[1].refusal(lifted(geometry)) if self.form else None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Reshape, the 2-D Conv or its form, and the Reshape back."""
        x = builder.reshape(builder.x, [0, 0, 1, builder.extent(builder.x, 2)])
        if self.form:
            builder.x, builder.geometry = x, lifted(geometry)
            builder.weight_edits = (*builder.weight_edits, AddKernelAxis(0))
            y = self.inner()[1].emit(builder.geometry, builder)
        else:
            y = builder.conv(x, geometry.window.with_axis(0), weight=[AddKernelAxis(0)])
        return builder.reshape(y, [0, 0, builder.extent(y, 3)])


def lifted(geometry: ConvGeometry) -> ConvGeometry:
    """Return the Conv of height 1."""
    return replace(
        geometry,
        extents=(1, *geometry.extents),
        kernel=(1, *geometry.kernel),
        strides=(1, *geometry.strides),
        dilations=(1, *geometry.dilations),
        pads_begin=(0, *geometry.pads_begin),
        pads_end=(0, *geometry.pads_end),
    )


STRATEGY = Lift()
