"""The hook: what enters a user's Python, so that its huggingface_hub asks the agent first.

Standard library only, Python >= 3.9; nothing else of edgecdn is imported here. `edgecdn.plugin.bundle` joins these
modules into the one file that `edgecdn hook install` puts into an environment.
"""
