"""Published decode speeds with offloaded experts, and how well the law of moeprof.offload fits."""
