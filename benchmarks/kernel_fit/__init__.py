"""How the constants and tables of `moeprof.projection.moe_kernels` are made and judged."""
