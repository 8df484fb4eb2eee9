"""The lab: who else is there, where, and what they say of themselves."""
