//! The `potluck` command: see the library beside it.

use std::process::ExitCode;

use potluck_engine::memory;

#[global_allocator]
static ALLOCATOR: memory::WipingAllocator = memory::WipingAllocator;

fn main() -> ExitCode {
    potluck::run_command_line()
}
