"""The gated delta recurrence: an oracle, a chunk-parallel form, one API."""
