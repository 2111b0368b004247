"""Makes names for a model: the only maker of them."""

from __future__ import annotations

from onnx import GraphProto, ModelProto

from dilrewrite.model.walk import Container, containers, names_in_training


class Names:
    """Makes names that no scope of the model uses: values and nodes of every graph and function, at any depth."""

    def __init__(self, proto: ModelProto) -> None:
        self._used: set[str] = set()
        for container in containers(proto, training=True):
            self._collect(container)
        self._used.update(names_in_training(proto))

    def _collect(self, container: Container) -> None:
        for node in container.node:
            self._used.update((node.name, *node.input, *node.output))
        if isinstance(container, GraphProto):
            for value in (*container.input, *container.output, *container.value_info):
                self._used.add(value.name)
            self._used.update(tensor.name for tensor in container.initializer)
            for sparse in container.sparse_initializer:
                self._used.update((sparse.values.name, sparse.indices.name))
            for annotation in container.quantization_annotation:
                self._used.add(annotation.tensor_name)
                self._used.update(entry.value for entry in annotation.quant_parameter_tensor_names)
        else:
            self._used.update((*container.input, *container.output))
            self._used.update(value.name for value in container.value_info)

    def make(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted_2`, `wanted_3`, ... that is free, and reserve it."""
        name, count = wanted, 1
        while not name or name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        return name
