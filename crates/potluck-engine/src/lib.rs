//! Stages over llama.cpp, in a sandboxed child process.
