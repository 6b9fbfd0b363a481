"""The proof that `pllm gate` finds what it must and cries wolf at nothing: trios recorded on a real, noisy machine, and
the gate's own decisions over them, hundreds of times. ``python -m gate_proof`` says how."""
