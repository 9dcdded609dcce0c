//! Asks a model over the swarm that this machine has joined, and shows the answer as it comes.
//!
//! ```text
//! cargo run --example ask -p potluck -- MODEL "Why is the sky blue?"
//! ```
//! The machine has joined (`potluck join`) with the folder that `POTLUCK_HOME` names. Engines are the program `potluck`: beside this one, or on the
//! `PATH`.

use std::{error::Error, io::Write};

use potluck::{Client, Settings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [model, question] = <[String; 2]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "give a model and a question")?;
    let client = Client::open(std::env::var("POTLUCK_HOME")?, &Settings::default()).await?;
    let mut answer = client.chat(&model).temperature(0.0).max_tokens(64).user(question).stream().await?;
    while let Some(piece) = answer.next().await {
        print!("{piece}");
        std::io::stdout().flush()?;
    }
    println!("\n{} tokens", answer.finish().await?.completion_tokens);
    client.close().await;
    Ok(())
}
