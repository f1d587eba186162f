"""llama.cpp, through llama-cpp-python: the evaluation callback sees the routers' tensors."""
