"""How well scalar-valued kernels stand for the full one, against width: the study of [P]."""
