"""What a run computes, beside its twin: the only wing that knows neuromorphic."""
