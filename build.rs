//! Prints the link search path of the libtorch that `import torch` will have loaded.
//!
//! torch-sys prints it too, but cargo caches what it printed; after pip has deleted the isolated
//! build environment that path is gone, and the second `pip install .` would not link.
//! No rpath and no `-ltorch`: Python has loaded libtorch before `_core` is imported.

use std::{env, process::Command};

const FIND_TORCH: &str =
    "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))";

fn main() {
    println!("cargo:rerun-if-env-changed=PATH");
    println!("cargo:rerun-if-env-changed=VIRTUAL_ENV");
    if env::var_os("CARGO_FEATURE_PYTHON").is_none() {
        return;
    }
    // The same choice of interpreter as torch-sys makes.
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let found = Command::new(python).args(["-c", FIND_TORCH]).output();
    if let Ok(output) = found {
        if output.status.success() {
            let folder = String::from_utf8_lossy(&output.stdout);
            println!("cargo:rustc-link-search=native={}/lib", folder.trim());
        }
    }
}
