"""The plugin: huggingface_hub of a Python environment asks the agent first.

`edgecdn hook install` puts it into an environment; `import edgecdn.plugin; edgecdn.plugin.enable()` is for one script.
"""

from __future__ import annotations

import sys

__all__ = ["enable"]


def enable() -> bool:
    """Have huggingface_hub of this process ask the agent; False where EDGECDN_DISABLE says no.

    Before or after huggingface_hub is imported; a client factory of the user's own stays as it is.
    """
    if "edgecdn_hook" in sys.modules:  # installed in this environment: one hook is enough
        return bool(sys.modules["edgecdn_hook"].enable())
    from edgecdn.plugin.hook.finder import enable as enable_here  # noqa: PLC0415 - the import costs nothing to others

    return enable_here()
