"""OpenVINO computes in the precision that is asked for, or says that this processor does not."""

from __future__ import annotations

import pytest

from dilrewrite.errors import MissingError
from dilrewrite.runtimes import CannotLoad, Options, Runnable, timed_backend
from tests.models_for_tests import conv2d, values

FEEDS = {"x": values(1, 2, 12, 12)}


@pytest.mark.parametrize("precision", ["", ":precision=f32", ":precision=bf16", ":precision=f16"])
def test_the_precision_is_the_one_that_is_stated(precision: str) -> None:
    """By default it is f32, whatever OpenVINO takes for this processor by itself."""
    try:
        runtime = timed_backend(f"openvino_cpu{precision}")
    except MissingError as error:
        pytest.skip(str(error))
    import openvino

    stated = runtime.settings(Options())["INFERENCE_PRECISION_HINT"]
    assert stated == (precision.partition("=")[2] or "f32")
    runnable = Runnable(model=conv2d().SerializeToString())
    core = openvino.Core()
    asked = {"INFERENCE_PRECISION_HINT": stated}
    takes = core.compile_model(core.read_model(runnable.model, b""), "CPU", asked).get_property(*asked).to_string()
    if takes != stated:
        with pytest.raises(
            CannotLoad, match=f"^precision={stated} is not run on this processor: OpenVINO takes {takes}$"
        ):
            runtime.runner(runnable, Options(threads=1), FEEDS)
        assert stated != "f32"
        return
    runner = runtime.runner(runnable, Options(threads=1), FEEDS)
    nodes = [op.get_rt_info() for op in runner._compiled.get_runtime_model().get_ops()]  # type: ignore[attr-defined]
    told = {str(node["runtimePrecision"].astype(str)) for node in nodes if "Conv" in str(node["layerType"].astype(str))}
    assert told == {stated}
