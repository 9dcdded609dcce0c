//! The engine's child process alone: what `potluck engine` runs, for this crate's own tests.

#[global_allocator]
static ALLOCATOR: potluck_engine::memory::WipingAllocator = potluck_engine::memory::WipingAllocator;

fn main() -> ! {
    potluck_engine::child_main()
}
