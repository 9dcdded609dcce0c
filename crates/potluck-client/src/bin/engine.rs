//! The engine's child process alone: what `potluck engine` runs, for this crate's own tests.

fn main() -> ! {
    potluck_engine::child_main()
}
