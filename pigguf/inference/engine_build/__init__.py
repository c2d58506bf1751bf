"""Build llama-cpp-python for this machine, and test the build.

    compilers     the machine and the compilers that work on it
    build_plan    compiler, CMake options and flags
    build_record  how the installed engine was built, and why to build it again
    self_test     whether the engine computes correctly, in a child process

All but self_test use the standard library only: scripts/setup.py runs them before anything is installed.
"""
