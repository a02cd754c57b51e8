//! A client process of the model test: does what its standard input says.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    match peerfs_tests::model::remote::serve(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerfs-model-client: {error}");
            ExitCode::FAILURE
        }
    }
}
