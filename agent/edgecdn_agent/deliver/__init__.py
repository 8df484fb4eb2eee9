"""One blob at a time, on its way into the cache because somebody wants to read it now."""
