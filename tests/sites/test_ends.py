"""What a region ends at, and why."""

import numpy as np
from onnx import NodeProto, TensorProto, helper

from dilrewrite.sites.find import find
from tests.sites.test_places import chain, model, op, value


def ends(nodes: list[NodeProto], outputs: str = "y", **weights: object) -> tuple[str, ...]:
    """Return what the one region to lift of a model ends at."""
    regions = find(model(nodes, outputs, weights=weights), regions=True).regions
    (found,) = (site.ends for site in regions if not site.meaning.block)  # type: ignore[attr-defined]
    return found


def test_inputs_and_outputs_of_the_graph() -> None:
    assert ends([*chain()]) == ("'x': enters the node list", "'y': leaves the node list")


def test_operators_without_a_rule_and_those_that_read_what_is_inside() -> None:
    nodes = [op("Einsum", "x", "e", equation="abc->abc"), *chain("e", "m"), op("Shape", "m", "n"), op("Relu", "m", "y")]
    found = ends([*nodes, op("ConstantOfShape", "n", "z")], "y z")
    assert found == (
        "Einsum 'e': not known to keep the layout",
        "Shape 'n': not known to keep the layout",
        "Relu 'y': costs less outside",
    )


def test_an_operator_whose_rule_does_not_hold() -> None:
    nodes = [op("Cast", "floats", "pads", to=TensorProto.INT64), *chain("x", "m"), op("Pad", "m pads", "y")]
    found = ends(nodes, floats=np.zeros(6, np.float32))
    assert found == ("'x': enters the node list", "Pad 'y': does not keep the layout as it stands")


def test_a_tensor_that_a_branch_reads() -> None:
    branch = [helper.make_graph([op("Neg", "q", name)], name, [], [value(name)]) for name in ("yes", "no")]
    nodes = [*chain("x", "z"), op("If", "test", "y", then_branch=branch[0], else_branch=branch[1])]
    found = ends(nodes, "y z", test=np.bool_(True))
    assert found[1:] == ("'q': read by a graph inside a node", "'z': leaves the node list")


def test_a_region_of_phases_ends_elsewhere() -> None:
    nodes = [*chain("x", "m", inner="a"), op("Transpose", "m", "n", perm=[0, 2, 1]), op("Cast", "n", "y", to=1)]
    lifted, phased = find(model(nodes), regions=True).regions
    assert lifted.ends[1:] == ("Cast 'y': costs less outside",)
    assert phased.ends[1:] == ("Transpose 'n': not known to keep the layout",)
