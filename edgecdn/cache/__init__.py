"""The Hugging Face cache: read, written and published into, and what edgecdn remembers of it."""
