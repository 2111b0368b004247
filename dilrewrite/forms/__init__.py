"""What a dilated convolution can be turned into: integers only, no ONNX."""
