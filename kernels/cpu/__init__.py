"""C++ operators for CPUs."""
