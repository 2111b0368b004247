"""Makes names for a model: the only maker of them."""

from __future__ import annotations

from onnx import GraphProto, ModelProto

from dilrewrite.model.walk import containers, ends, names_in_training


class Names:
    """Makes names that no scope of the model uses: values and nodes of every graph and function, at any depth."""

    def __init__(self, proto: ModelProto) -> None:
        used = self._used = set(names_in_training(proto))
        for container in containers(proto, training=True):
            for node in container.node:
                used.update((node.name, *node.input, *node.output))
            used.update(*ends(container), (value.name for value in container.value_info))
            if isinstance(container, GraphProto):
                used.update(tensor.name for tensor in container.initializer)
                for sparse in container.sparse_initializer:
                    used.update((sparse.values.name, sparse.indices.name))
                for note in container.quantization_annotation:
                    used.update((note.tensor_name, *(entry.value for entry in note.quant_parameter_tensor_names)))

    def make(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted_2`, `wanted_3`, ... that is free, and reserve it."""
        name, count = wanted, 1
        while not name or name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        return name
