"""From misses to seconds: experts in GPU memory, host memory and on drives, on a timeline."""
