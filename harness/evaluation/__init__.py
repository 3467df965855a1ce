"""Tasks of lm-evaluation-harness, answered over a cache that is stored as a scheme says."""
