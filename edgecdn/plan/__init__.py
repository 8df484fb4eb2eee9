"""Planning a transfer: who fetches which bytes next. Pure decisions; the caller brings clock and chance."""
