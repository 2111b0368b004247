"""What reports say for a reason: tests that read it compare with these, and spell no words of their own."""

from __future__ import annotations

import re
from typing import Any

from dilrewrite.choice.reason import Reason, Why
from dilrewrite.reports import reasons


def words(reason: Reason, because: Reason | Why | None = None, **facts: Any) -> str:
    """What is said for a reason with these facts on ONNX Runtime's CPU provider."""
    why = Why(reason=because) if isinstance(because, Reason) else because
    return reasons.words(Why(reason=reason, because=why, **facts), "onnxruntime_cpu")


def says(text: str, reason: Reason, *because: Reason) -> bool:
    """Whether a text begins with what is said for a reason, whatever the facts are; `because`: the reasons of it."""
    template = reasons.WORDS[reason].replace("{backend}", "onnxruntime_cpu")
    for inner in because:
        template = template.replace("{because}", reasons.WORDS[inner].replace("{backend}", "onnxruntime_cpu"))
    return re.match(".*".join(map(re.escape, re.split("{.*?}", template))), text) is not None
