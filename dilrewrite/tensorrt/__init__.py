"""TensorRT: from a verified model to an engine, and running it. Nothing here loads TensorRT before it is used.

In the order in which a file may import another: protocols, bindings, layers, precision, profiles, sidecar, make, cuda,
run.
"""
