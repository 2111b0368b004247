"""Writes quantised ONNX models as TFLite models, which compilers of small devices take: int8, channels last."""
