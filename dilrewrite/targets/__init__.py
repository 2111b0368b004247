"""Targets: what devices and their compilers take, from public sources, and how a model stands to it.

>>> from dilrewrite.targets import find, judge
>>> profile = find("rknn")  # the newest rknn; also "rknn-2.3.2", "amd-dpu:channel_parallel=32", "./mychip.json"
>>> judgement = judge(proto, profile, {"x": (1, 3, 64, 64)})  # doctest: +SKIP
>>> [(node.key, node.fit, node.because) for node in judgement.nodes if node.fit is not Fit.NATIVE]  # doctest: +SKIP

What is asked before anything is written:

- `profile.conv_findings(facts.conv(kernel=(3, 3), dilations=(4, 4), begin=(4, 4), end=(4, 4), channels=(32, 32),
  batch=1, extents=(64, 64)))`: nothing where such a Conv is native, else a `Finding` for each rule that it breaks, or
  that is not known. `worst(finding.fit for finding in findings)` is its `Fit`.
- `profile.operator_findings("Slice", facts.node("Slice", {}, [(1, 8, 64, 64)], [(1, 8, 32, 64)], [None, (0,), (64,),
  (2,), (2,)]))`: the same of another operator.
- `profile.tensor_findings(facts.tensor((16, 32, 17, 17)))`: the same of a tensor.
- `profile.lowering(facts)`: what the target's own compiler makes of a dilated Conv, and how many times the work it is.
- `profile.refolds`: patterns that it turns back. `profile.unit_axis_dilation`: `match` where axes on which the kernel
  is 1 have to have the dilation of the others.

`docs/devices.md` says what a profile holds, and how to write one.
"""

from __future__ import annotations

from dilrewrite.targets import facts
from dilrewrite.targets.judge import Judgement, NodeFit, judge
from dilrewrite.targets.profile import Finding, Fit, Lowering, Profile, Rule, Source, worst
from dilrewrite.targets.read import find, profiles, read
from dilrewrite.targets.report import TargetNode, TargetReport, report

__all__ = [
    "Finding",
    "Fit",
    "Judgement",
    "Lowering",
    "NodeFit",
    "Profile",
    "Rule",
    "Source",
    "TargetNode",
    "TargetReport",
]
__all__ += ["facts", "find", "judge", "profiles", "read", "report", "worst"]
