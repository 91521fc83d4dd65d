"""Random calls of every public op, each judged by an independent loop or by the refusal that it must get."""
