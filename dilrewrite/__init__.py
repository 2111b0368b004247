"""Rewrites dilated convolutions of ONNX models into exactly equal undilated subgraphs."""
