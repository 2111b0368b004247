"""A pass of Olive, for its workflows: `DilatedConvPass`. Olive finds it by a package configuration, which this prints:

python -m dilrewrite.integrations.olive > olive_config.json
olive run --config workflow.json --package-config olive_config.json
"""

from __future__ import annotations

import json
import logging
import typing
from pathlib import Path
from typing import Any

from olive.common.config_utils import ParamCategory
from olive.exception import OlivePassError
from olive.hardware.accelerator import AcceleratorSpec
from olive.hardware.constants import ExecutionProvider
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import dilrewrite
from dilrewrite import keywords
from dilrewrite.errors import DilrewriteError, MissingError, UsageError
from dilrewrite.integrations import failure
from dilrewrite.options import Option, every_option

logger = logging.getLogger(f"olive.{__name__}")  # which a workflow prints

BACKENDS = {
    ExecutionProvider.CPUExecutionProvider: "onnxruntime_cpu",
    ExecutionProvider.CUDAExecutionProvider: "onnxruntime_cuda",
    ExecutionProvider.TensorrtExecutionProvider: "onnxruntime_tensorrt",
    ExecutionProvider.OpenVINOExecutionProvider: "openvino_cpu",
    ExecutionProvider.NvTensorRTRTXExecutionProvider: "tensorrt_rtx",
}
"""The runtime that stands for each execution provider of Olive, where there is one."""

_OWN = {"force"}  # Olive's passes always write anew


class DilatedConvPass(Pass):
    """Rewrites the dilated Convs of an ONNX model as `dilrewrite.optimize` does: where it is faster, and proved equal.

    Its parameters are the options of `dilrewrite.optimize`. It times on the runtime of the target's execution provider,
    unless `backend` names another one. What became of the model is in the attribute `dilrewrite` of the result.

    Raises ValueError, which ends a workflow, for wrong options, a model that cannot be used, and a missing runtime.
    Raises `OlivePassError`, after which Olive goes on without this result, when the model cannot be run, results
    differ, or dilation is left that `eliminate` should remove.
    """

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """Say that what is fastest depends on the accelerator."""
        del accelerator_spec
        return False

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        del accelerator_spec
        known = every_option()
        return {name: _parameter(known[name]) for name in keywords.Pass.__annotations__ if name not in _OWN}

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        options = config.model_dump()
        options["backend"] = _backend(options, self.accelerator_spec)
        _check_model(model)
        output = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        try:
            report = dilrewrite.optimize(model.model_path, output, **options, force=True, external_data="copy")
            if (error := failure(report)) is not None:
                raise error
        except (UsageError, MissingError) as error:
            raise ValueError(str(error)) from error
        except DilrewriteError as error:
            raise OlivePassError(str(error)) from error
        logger.info("%s", keywords.in_python(report.summary))
        said = {"status": report.status, "rewritten": report.rewritten, "speedup": report.speedup}
        beside = any(path != output for path in output.parent.iterdir())  # its external data
        return ONNXModelHandler(
            model_path=str(output.parent if beside else output),
            onnx_file_name=output.name if beside else None,
            inference_settings=model.inference_settings,
            use_ort_extensions=model.use_ort_extensions,
            model_attributes={**(model.model_attributes or {}), "dilrewrite": said},
        )


def _parameter(option: Option) -> PassConfigParam:
    """Return an option as Olive has it: lists for tuples, and texts for paths, which Olive makes absolute."""
    kinds = typing.get_args(option.kind) or (option.kind,)
    many = typing.get_origin(option.kind) is tuple
    return PassConfigParam(
        type_=list[str] if many else str if Path in kinds else kinds[0],
        category=ParamCategory.PATH if Path in kinds and not many else ParamCategory.NONE,
        default_value=list(option.default) if many else option.default,
        description=keywords.in_python(option.help),
    )


def _backend(options: dict[str, Any], target: AcceleratorSpec) -> str:
    """Return the runtime to time on. Raises ValueError where none stands for the target's execution provider."""
    provider, asked = target.execution_provider, str(options["backend"])
    chosen = options["strategy"] or options["eliminate"] or options["decisions"] or options["budget"] == 0
    if asked != "auto" or provider is None:
        return asked
    if provider not in BACKENDS and not chosen:
        raise ValueError(
            f"nothing here can time models for {provider}; name a backend that is like it, or what to do without "
            "timing: strategy, eliminate or decisions"
        )
    return BACKENDS.get(provider, asked)


def _check_model(model: Any) -> None:
    """Raise ValueError for what is no ONNX model, or has weights that only Olive knows of."""
    if not isinstance(model, ONNXModelHandler):
        raise ValueError(f"{type(model).__name__} is no ONNX model; put OnnxConversion before this pass")
    if model.external_initializers_file_name or model.constant_inputs_file_name:
        raise ValueError("the model's weights are split off as inputs; put this pass before ExtractAdapters")


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with this pass in it: `olive.workflows.run(..., package_config=...)`."""
    known: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    known["passes"][DilatedConvPass.__name__] = {
        "module_path": f"dilrewrite.integrations.olive.{DilatedConvPass.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "module_dependencies": ["dilrewrite"],
    }
    return known


if __name__ == "__main__":
    print(json.dumps(package_config(), indent=2))
