"""The commands of `rlkl`, one module each with a function ``run(options)``. Views lie beside them."""
